package test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	wire "github.com/miekg/dns"

	"bpfnet/internal/netns"
)

// watchesDNS starts a watch and waits until it wants queries.
func (n node) watchesDNS(t *testing.T, args ...string) *background {
	t.Helper()
	watch := startWatch(t, n.bpfnet(append([]string{"watch", "dns", "-o", "ndjson"}, args...)...))
	n.sh(t, `until nsenter --net=/run/netns/$HOST bpfnet map get dns/dns_queries 0 -o json | jq -e '.value == 1'; do sleep 0.02; done`)
	return watch
}

// loadsDNS loads dns, and attaches it to the host side of Pod A.
func loadsDNS(t *testing.T) node {
	t.Helper()
	n := newNode(t)
	n.must(t, "load", "dns")
	n.must(t, "attach", "tc", "dns", "--dev", "veth-a", "--direction", "both")
	return n
}

// bashQuestion has a container ask for www.example, once when a file is there, and keep
// its socket.
const bashQuestion = `
until [ -e %s ]; do sleep 0.05; done
exec 3<>/dev/udp/10.77.0.1/53
printf '\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03WWW\x07example\0\0\x01\0\x01' >&3
exec sleep 600`

// TestWatchDNS: a container asks, and the watch says who, what, and what the server says.
func TestWatchDNS(t *testing.T) {
	n := loadsDNS(t)
	serveNames(t, n, map[string][]string{"www.example.": {"CNAME web.example."}, "web.example.": {"A 10.77.0.5"}})
	id, begin := containerID(t), t.TempDir()+"/begin"
	pid := container(t, n.podA, "docker/"+id, "bash", "-c", fmt.Sprintf(bashQuestion, begin))
	watch := n.watchesDNS(t, "--count", "1", "--pid", fmt.Sprint(pid))
	other := n.onHost("watch", "dns")
	if other.code != 4 || !strings.Contains(other.stderr, "only one can read it") {
		t.Errorf("a second watch ends with %d: %s", other.code, other.stderr)
	}
	n.sh(t, "touch "+begin)
	doc := watch.wait(t)
	got := jq(t, `[.status, .observed_at, .devname, .container.id, .process.pid, .process.command, .network.transport, .network.client.address,
		.network.server.address, .network.server.port, .id, .name, .type, .class, .rcode, (.answers | map(.name + " " + .type + " " + .data) | join(", ")),
		.latency_us >= 0 and .latency_us < 1000000, .retries, .loss.messages] | map(tostring) | join(" ")`, doc)
	want := fmt.Sprintf("answered tc veth-a %s %d bash udp 10.77.0.4 10.77.0.1 53 4660 www.example A IN noerror "+
		"www.example CNAME web.example., web.example A 10.77.0.5 true 0 0", id, pid)
	if got != want && got != strings.Replace(want, "bash", "sleep", 1) {
		t.Errorf("%s\nwant %s\nin %s", got, want, doc)
	}
	n.sh(t, `nsenter --net=/run/netns/$HOST bpfnet map get dns/dns_queries 0 -o json | jq -e '.value == 0'`)
}

// floodQueries has Pod A send queries that nobody answers.
func (n node) floodQueries(t *testing.T, count int) {
	t.Helper()
	q, err := new(wire.Msg).SetQuestion("flood.example.", wire.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	err = netns.Do("/run/netns/"+n.podA, func() error {
		conn, err := net.Dial("udp", "10.77.0.5:53")
		if err != nil {
			return err
		}
		defer conn.Close()
		for i := range count {
			q[0], q[1] = byte(i>>8), byte(i)
			_, _ = conn.Write(q) // nobody listens, which the next one is told
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestWatchDNSFlood: in a flood the lines are whole, the loss is stated, and the end is
// clean when nobody reads any more.
func TestWatchDNSFlood(t *testing.T) {
	n := loadsDNS(t)
	cmd := exec.Command("bash", "-o", "pipefail", "-c", `"$0" "$@" | head -n 5`)
	ours := n.bpfnet("watch", "dns", "--timeout", "100ms", "-o", "ndjson")
	cmd.Args, cmd.Env = append(cmd.Args, ours.Args...), ours.Env
	head := startWatch(t, cmd)
	n.sh(t, `until nsenter --net=/run/netns/$HOST bpfnet map get dns/dns_queries 0 -o json | jq -e '.value == 1'; do sleep 0.02; done`)
	n.floodQueries(t, 50_000)
	lines := strings.Split(strings.TrimSpace(head.wait(t)), "\n")
	if len(lines) != 5 {
		t.Errorf("%d lines", len(lines))
	}
	for _, line := range lines {
		var doc struct{ Status, Name string }
		if err := json.Unmarshal([]byte(line), &doc); err != nil || doc.Status != "unanswered" || doc.Name != "flood.example" {
			t.Errorf("%v in %s", err, line)
		}
	}
	watch := n.watchesDNS(t, "--timeout", "100ms", "--strict", "--for", "4s")
	if err := watch.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	n.floodQueries(t, 20_000)
	if err := watch.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	select {
	case err := <-watch.ended:
		if !errors.As(err, &exit) || exit.ExitCode() != 11 || !strings.Contains(watch.stderr.String(), "messages were lost: ") {
			t.Errorf("%v: %s", err, watch.stderr.String())
		}
	case <-time.After(20 * time.Second):
		t.Fatal("it doesn't end")
	}
	last := watch.stdout.String()
	last = last[strings.LastIndex(strings.TrimSpace(last), "\n")+1:]
	if jq(t, `.loss.messages > 0`, last) != "true" {
		t.Errorf("no loss in %s", last)
	}
}
