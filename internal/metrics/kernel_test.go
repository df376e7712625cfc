package metrics

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"bpfnet/internal/blocklist"
	"bpfnet/internal/counter"
	"bpfnet/internal/datapath"
	"bpfnet/internal/dns"
	"bpfnet/internal/endpoint"
	"bpfnet/internal/engine"
	"bpfnet/internal/peers"
	"bpfnet/internal/ports"
	"bpfnet/internal/testkit"
	"bpfnet/internal/traffic"
)

// kernel is the source of a real kernel.
type kernel struct {
	*datapath.Engine
	endpoints endpoint.API
}

func (k kernel) Blocklist() blocklist.API { return blocklist.New(k.Engine) }
func (k kernel) Endpoints() endpoint.API  { return k.endpoints }

func (k kernel) PodTraffic(instance string) (traffic.Sampler, error) {
	return traffic.NewReader(k.Engine, instance), nil
}

func (k kernel) Peers(instance string) (peers.Sampler, error) {
	return peers.NewReader(k.Engine, instance), nil
}

func (k kernel) Counters(instance string) (counter.Sampler, error) {
	return counter.NewReader(k.Engine, instance), nil
}

func (k kernel) Ports(instance string) (ports.API, error) {
	return ports.NewFilter(k.Engine, instance), nil
}

func (k kernel) LostAnswers(instance string) (uint64, error) { return dns.Lost(k.Engine, instance) }

func newKernel(t testing.TB) kernel {
	t.Helper()
	testkit.NeedsKernel(t)
	e, err := datapath.Open(datapath.Options{Root: testkit.Root(t)})
	if err != nil {
		t.Fatal(err)
	}
	return kernel{e, endpoint.New("", engine.Sockets{})}
}

// Scrapes of a real kernel, several at once, while programs come and go.
func TestKernel(t *testing.T) {
	k := newKernel(t)
	w := watch(t, k, 10)
	w.Now = time.Now
	if err := w.Begin(t.Context()); err != nil {
		t.Fatal(err)
	}
	var scrapes sync.WaitGroup
	for range 3 {
		scrapes.Go(func() {
			for range 20 {
				s, err := w.scrape(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				s.gather()
			}
		})
	}
	for range 3 {
		for _, program := range []string{"pod-traffic", "peers", "xdp-counter", "port-filter", "dns"} {
			if _, err := k.Load(t.Context(), datapath.LoadRequest{Source: program}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := k.Unload(t.Context(), datapath.UnloadRequest{All: true}); err != nil {
			t.Fatal(err)
		}
	}
	scrapes.Wait()
	for _, note := range w.notes {
		if !strings.Contains(note, context.DeadlineExceeded.Error()) { // of emulated machines
			t.Error(note)
		}
	}
	for _, program := range []string{"pod-traffic", "peers", "xdp-counter", "port-filter", "dns"} {
		if _, err := k.Load(t.Context(), datapath.LoadRequest{Source: program}); err != nil {
			t.Fatal(err)
		}
	}
	loaded := map[string]bool{}
	for name := range w.values("bpfnet_prog_runs_total") {
		fields := strings.Fields(name)
		loaded[fields[len(fields)-1]] = true
	}
	if len(loaded) != 5 {
		t.Errorf("metrics of %v", loaded)
	}
}
