package test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// flowsDocument is that of watch flows.
type flowsDocument struct {
	Flows []flowDoc
	Loss  struct {
		Events  int
		MapFull int `json:"map_full"`
	}
}

type flowDoc struct {
	partyDoc
	Network     struct{ Local, Peer struct{ Port int } }
	IO          flowIO
	Attribution struct{ Status string }
	Src, Dst    partyDoc
	ClosedAt    *string `json:"closed_at"`
}

// partyDoc is who is at an end.
type partyDoc struct {
	Process   struct{ Command string }
	Container struct{ ID, Name string }
	K8s       struct{ Namespace, Pod string }
}

func (p partyDoc) String() string {
	return fmt.Sprintf("%s/%s/%s %.12s %s", p.K8s.Namespace, p.K8s.Pod, p.Container.Name, p.Container.ID, p.Process.Command)
}

type flowIO struct {
	TransmitBytes uint64 `json:"transmit_bytes"`
	ReceiveBytes  uint64 `json:"receive_bytes"`
}

// flows runs a command whose document is of flows.
func (e engine) flows(args ...string) (doc flowsDocument) {
	e.Helper()
	out := e.must(append(args, "-o", "json")...)
	if err := json.Unmarshal([]byte(out), &doc); err != nil {
		e.Fatalf("%v: %s", err, out)
	}
	if doc.Loss.Events != 0 || doc.Loss.MapFull != 0 {
		e.Errorf("%q lost %+v", args, doc.Loss)
	}
	return doc
}

// ended are the flows of a document that are closed: what each container sent and
// received in all.
func (d flowsDocument) ended(port int) map[string]flowIO {
	sums := map[string]flowIO{}
	for _, f := range d.Flows {
		if f.ClosedAt == nil || f.Network.Local.Port != port && f.Network.Peer.Port != port {
			continue
		}
		key := f.String() + " " + f.Attribution.Status
		sum := sums[key]
		sum.TransmitBytes += f.IO.TransmitBytes
		sum.ReceiveBytes += f.IO.ReceiveBytes
		sums[key] = sum
	}
	return sums
}

// streamFlows starts a bpfnet that writes documents of flows, and waits for the first.
func (e engine) streamFlows(args ...string) *json.Decoder {
	e.Helper()
	cmd := e.bpfnet(append(args, "-o", "ndjson")...)
	out, err := cmd.StdoutPipe()
	if err == nil {
		cmd.Stderr = os.Stderr
		err = cmd.Start()
	}
	if err != nil {
		e.Fatal(err)
	}
	e.Cleanup(func() {
		out.Close() // it may wait until somebody reads
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
	})
	docs := json.NewDecoder(out)
	var first flowsDocument
	if err := docs.Decode(&first); err != nil {
		e.Fatal(err)
	}
	return docs
}

// await reads documents until flows have ended.
func (e engine) await(docs *json.Decoder, port int, want map[string]flowIO) {
	e.Helper()
	got := map[string]flowIO{}
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); {
		var doc flowsDocument
		if err := docs.Decode(&doc); err != nil {
			e.Fatal(err)
		}
		for key, io := range doc.ended(port) {
			sum := got[key]
			got[key] = flowIO{sum.TransmitBytes + io.TransmitBytes, sum.ReceiveBytes + io.ReceiveBytes}
		}
		if maps.Equal(got, want) {
			return
		}
	}
	e.Errorf("flows of port %d:\n%v, want\n%v", port, got, want)
}

// end names an end of a flow as partyDoc does. A process has the name that it had when
// it used the socket first: it is nc that becomes another program then.
func (t talker) end() string {
	c := t.Containers[1]
	return fmt.Sprintf("%s/%s/%s %.12s nc exact", *t.Pod.Namespace, *t.Pod.Name, *c.Name, c.ID)
}

// What two Pods send each other is counted at both ends to the byte, with the names of
// process, container and Pod.
func TestFlowsOfPods(t *testing.T) {
	n := newContainerd(t)
	web := n.newTalker(n.runPod(n.podConfig("web", newUID(t), "besteffort"), "nginx"))
	client := n.newTalker(n.runPod(n.podConfig("client", newUID(t), "burstable"), "curl"))
	n.must("load", "flows", "--set", "port=7000") // who else floods the machine doesn't matter
	n.must("attach", "trace", "flows")
	private := n.streamFlows("watch", "flows", "--instance", "none", "--pod", "shop/client", "--interval", "200ms")
	for _, address := range web.addresses {
		n.send(client, web, address)
	}
	calls := uint64(len(web.addresses))
	answer := uint64(len(fmt.Sprint(sent)+"\n")) * calls
	atClient := map[string]flowIO{client.end(): {sent * calls, answer}}
	atWeb := map[string]flowIO{web.end(): {answer, sent * calls}}
	n.await(private, 7000, atClient)
	both := maps.Clone(atClient)
	maps.Copy(both, atWeb)
	for _, one := range []struct {
		flags string
		want  map[string]flowIO
	}{
		{"", both}, {"--pod shop/web", atWeb}, {"--pod shop/client", atClient}, {"--container nginx", atWeb}, {"--container " + client.container, atClient},
	} {
		args := append([]string{"watch", "flows", "--once", "--since-load"}, strings.Fields(one.flags)...)
		if got := n.flows(args...).ended(7000); !maps.Equal(got, one.want) {
			t.Errorf("%q:\n%v, want\n%v", args, got, one.want)
		}
	}
	sums := map[string]uint64{}
	for _, f := range n.flows("flows", "sum", "--by", "src.pod,dst.pod").Flows {
		sums[f.Src.K8s.Pod+" "+f.Dst.K8s.Pod] += f.IO.TransmitBytes
	}
	if sums["client web"] != sent*calls || sums["web client"] != answer {
		t.Errorf("by Pods: %v", sums)
	}
	n.endsNamed(web, client)
}

// endsNamed ends a Pod that has a connection, which keeps its names.
func (n criNode) endsNamed(web, client talker) {
	n.Helper()
	docs := n.streamFlows("watch", "flows", "--instance", "none", "--pod", "shop/web", "--interval", "200ms")
	exec := func(id, script string) { // it ends with the Pod
		_, _ = n.runtime.ExecSync(context.Background(), &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", script}, Timeout: 30})
	}
	go exec(web.container, "nc -l -p 7001 -e busybox cat")
	go exec(client.container, fmt.Sprintf("(head -c 1234 /dev/zero; sleep 30) | while ! nc %s 7001; do sleep 0.1; done", web.addresses[0]))
	n.soon("it is sent back", func() error {
		var doc flowsDocument
		if err := docs.Decode(&doc); err != nil {
			n.Fatal(err)
		}
		for _, f := range doc.Flows {
			if f.Network.Local.Port == 7001 && f.IO == (flowIO{1234, 1234}) {
				return nil
			}
		}
		return errors.New("it isn't")
	})
	if err := n.removePod(web.Containers[0].ID); err != nil {
		n.Fatal(err)
	}
	n.await(docs, 7001, map[string]flowIO{web.end(): {1234, 1234}})
}

// So is what two containers of Docker send each other.
func TestFlowsOfContainers(t *testing.T) {
	d := newDocker(t)
	web, client := d.sleeper("web", "bridge"), d.sleeper("client", "bridge")
	d.must("load", "flows", "--set", "port=7000")
	d.must("attach", "trace", "flows")
	d.docker("exec", "-d", "web", "nc", "-l", "-p", "7000", "-e", "wc", "-c")
	got := d.docker("exec", "client", "sh", "-c", fmt.Sprintf("head -c %d /dev/zero >/tmp/x; while ! nc %s 7000 </tmp/x; do sleep 0.1; done", sent, web.Interfaces[0].Addresses[0]))
	if got != fmt.Sprint(sent) {
		t.Fatalf("received %q bytes", got)
	}
	end := func(k known) string {
		return fmt.Sprintf("//%s %.12s nc exact", *k.Containers[0].Name, k.Containers[0].ID)
	}
	answer := uint64(len(got) + 1)
	want := map[string]flowIO{end(client): {sent, answer}, end(web): {answer, sent}}
	if got := d.flows("watch", "flows", "--once", "--since-load").ended(7000); !maps.Equal(got, want) {
		t.Errorf("%v, want\n%v", got, want)
	}
	delete(want, end(client))
	if got := d.flows("watch", "flows", "--once", "--since-load", "--container", "web").ended(7000); !maps.Equal(got, want) {
		t.Errorf("%v, want\n%v", got, want)
	}
}
