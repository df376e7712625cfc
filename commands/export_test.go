package commands

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"bpfnet/internal/traffic"
)

// served runs a command that serves metrics on the fake, and returns where. The end of
// the test ends it, and it must end well.
func (f *fake) served(t *testing.T, stderr *bytes.Buffer, line string) string {
	t.Helper()
	env := f.env(&bytes.Buffer{}, stderr)
	listening := make(chan net.Addr, 1)
	env.Listen = func(address string) (net.Listener, error) {
		l, err := net.Listen("tcp", address)
		if err == nil {
			listening <- l.Addr()
		}
		return l, err
	}
	env.ReadFile = os.ReadFile
	ctx, cancel := context.WithCancel(context.Background())
	exit := make(chan int, 1)
	go func() { exit <- Run(ctx, env, strings.Fields(line)) }()
	t.Cleanup(func() {
		cancel()
		if got := <-exit; got != 0 {
			t.Errorf("exit %d: %s", got, stderr)
		}
	})
	select {
	case at := <-listening:
		return at.String()
	case got := <-exit:
		exit <- got
		t.Fatalf("%s ended: %s", line, stderr)
	}
	return ""
}

// client leaves no connection behind that a server would wait for.
var client = http.Client{Transport: &http.Transport{DisableKeepAlives: true}}

func get(t *testing.T, url string) string {
	t.Helper()
	answer, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v: %s", url, answer.Status, err, body)
	}
	return string(body)
}

// steady is what a scrape says, but for Go, the process, and what differs from one time
// to the next.
func steady(text string) string {
	var kept strings.Builder
	for line := range strings.Lines(text) {
		name := strings.TrimPrefix(strings.TrimPrefix(line, "# HELP "), "# TYPE ")
		varies := strings.HasPrefix(line, "bpfnet_build_info") || strings.HasPrefix(line, "bpfnet_scrape_duration_seconds")
		if strings.HasPrefix(name, "bpfnet_") && !varies {
			kept.WriteString(line)
		}
	}
	return kept.String()
}

// goldenMetrics compares metrics with a file.
func goldenMetrics(t *testing.T, file, got string) {
	t.Helper()
	if os.Getenv("UPDATE_SCRIPTS") != "" {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil || got != string(want) {
		t.Errorf("%v; UPDATE_SCRIPTS=1 keeps\n%s", err, got)
	}
}

// attachedTraffic is fakeTraffic attached to the Pod's interface, too.
type attachedTraffic struct{ traffic.Sampler }

func (a attachedTraffic) Sample(ctx context.Context) (traffic.Sample, error) {
	s, err := a.Sampler.Sample(ctx)
	if s.Devices != nil {
		s.Devices[5] = "veth-b"
	}
	return s, err
}

// TestExposition has all of what a scrape says.
func TestExposition(t *testing.T) {
	f := scriptFake()
	f.traffic = attachedTraffic{f.traffic}
	var stderr bytes.Buffer
	for _, line := range []string{
		"load pod-traffic", "load xdp-counter", "load port-filter", "load dns", "load peers",
		"attach tc pod-traffic --dev veth-a --direction both", "attach tc peers --dev veth-a --direction both", "attach cgroup pod-traffic --cgroup /a", "attach xdp xdp-counter --dev eth0",
		"ports deny 80/tcp", "blocklist add 198.51.100.7", "blocklist add 10.0.0.1 --force --list private",
	} {
		if exit := Run(context.Background(), f.env(&bytes.Buffer{}, &stderr), strings.Fields(line)); exit != 0 {
			t.Fatalf("%s: %s", line, stderr.String())
		}
	}
	stderr.Reset()
	in := f.instances["pod-traffic"]
	entries := uint64(2)
	in.Maps[0].Entries = &entries
	in.Attachments[0].Defunct = true
	address := f.served(t, &stderr, "export prometheus --listen 127.0.0.1:0 --run-stats")
	text := get(t, "http://"+address+"/metrics")

	goldenMetrics(t, "testdata/metrics.prom", steady(text))
	if body := get(t, "http://"+address+"/-/healthy"); body != "bpfnet is healthy.\n" {
		t.Errorf("healthy: %q", body)
	}
	if body := get(t, "http://"+address+"/"); !strings.Contains(body, `href="/metrics"`) {
		t.Errorf("landing page: %s", body)
	}
	answer, err := client.Post("http://"+address+"/metrics", "text/plain", nil)
	if err != nil {
		t.Fatal(err)
	}
	if answer.Body.Close(); answer.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("post: %s", answer.Status)
	}
}

// slowTraffic takes its time for a sample.
type slowTraffic struct{ began chan struct{} }

func (s slowTraffic) Sample(context.Context) (traffic.Sample, error) {
	s.began <- struct{}{}
	time.Sleep(100 * time.Millisecond)
	return traffic.Sample{}, nil
}

// TestExportEnds lets a scrape that runs finish.
func TestExportEnds(t *testing.T) {
	f := scriptFake()
	slow := slowTraffic{make(chan struct{}, 10)}
	f.traffic = slow
	var stderr bytes.Buffer
	if exit := Run(context.Background(), f.env(&bytes.Buffer{}, &stderr), []string{"load", "pod-traffic"}); exit != 0 {
		t.Fatal(stderr.String())
	}
	ended := make(chan string, 1)
	t.Run("interrupted", func(t *testing.T) {
		address := f.served(t, &stderr, "export prometheus --listen 127.0.0.1:0")
		<-slow.began // before the first scrape
		get(t, "http://"+address+"/-/healthy")
		go func() {
			answer, err := client.Get("http://" + address + "/metrics")
			if err != nil {
				ended <- err.Error()
				return
			}
			defer answer.Body.Close()
			if _, err = io.ReadAll(answer.Body); err != nil {
				ended <- err.Error()
				return
			}
			ended <- answer.Status
		}()
		<-slow.began
	})
	if got := <-ended; got != "200 OK" {
		t.Errorf("the scrape ended with %s", got)
	}
}
