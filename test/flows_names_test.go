package test

import (
	"encoding/json"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"bpfnet/internal/flow"
	"bpfnet/internal/netns"
	"bpfnet/internal/sample"
)

// serveBytes has Pod B send back what connections to it send.
func (n node) serveBytes(t *testing.T) {
	t.Helper()
	var listener net.Listener
	err := netns.Do("/run/netns/"+n.podB, func() (err error) {
		listener, err = net.Listen("tcp", addressB+":8080")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() { defer conn.Close(); _, _ = io.Copy(conn, conn) }()
		}
	}()
}

// connect connects to it, and keeps the connection.
func (n node) connect(t *testing.T, ns string) net.Conn {
	t.Helper()
	var conn net.Conn
	err := netns.Do("/run/netns/"+ns, func() (err error) {
		conn, err = net.Dial("tcp", addressB+":8080")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// peerNames are the names that the documents of a watch have for the peer of a connection,
// of at least so many documents.
func peerNames(t *testing.T, watch *background, conn net.Conn, least int) (names []string) {
	t.Helper()
	local := conn.LocalAddr().(*net.TCPAddr)
	for deadline := time.Now().Add(20 * time.Second); len(names) < least; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s has no news: %s%s", local, watch.stdout.String(), watch.stderr.String())
		}
		names = nil
		for line := range strings.Lines(watch.stdout.String()) {
			var doc flow.Document
			if json.Unmarshal([]byte(line), &doc) != nil {
				break // it isn't all there
			}
			for _, f := range doc.Flows {
				if l := f.Network.Local; l.Address != nil && *l.Address == local.AddrPort().Addr().Unmap() && int(*l.Port) == local.Port {
					names = append(names, sample.Value(f.Network.Peer.Name))
				}
			}
		}
	}
	return names
}

// TestNamesOfPeers: what Pod A opens after it has asked has the name that it asked for,
// and keeps it; what it opened before has none, and what others open the last one that
// anybody asked for.
func TestNamesOfPeers(t *testing.T) {
	n := newNode(t)
	if r := n.onHost("watch", "flows", "--names", "--once"); r.code != 3 || !strings.Contains(r.stderr, "bpfnet load dns") {
		t.Fatalf("without dns: %d %s", r.code, r.stderr)
	}
	serveNames(t, n, map[string][]string{"www.shop.example.": {"CNAME cdn.example."}, "cdn.example.": {"A " + addressB}, "other.example.": {"A " + addressB}})
	n.serveBytes(t)
	n.must(t, "load", "dns")
	n.must(t, "attach", "tc", "dns", "--dev", "veth-a", "--direction", "both")
	n.must(t, "load", "flows")
	n.must(t, "attach", "trace", "flows")
	before := n.connect(t, n.podA)
	time.Sleep(300 * time.Millisecond)      // an answer that comes at once counts for it
	n.askFor(t, "www.shop.example.", "udp") // nobody reads it yet
	shop := n.connect(t, n.podA)
	watch := startWatch(t, n.bpfnet("watch", "flows", "--names", "--port", "8080", "--interval", "200ms", "-o", "ndjson"))
	peerNames(t, watch, shop, 1)
	if r := n.onHost("watch", "flows", "--names", "--once"); r.code != 4 || !strings.Contains(r.stderr, "only one can read it") {
		t.Errorf("a second watch ends with %d: %s", r.code, r.stderr)
	}
	n.askFor(t, "other.example.", "tcp")
	other, elsewhere := n.connect(t, n.podA), n.connect(t, n.host)
	for _, c := range []struct {
		conn  net.Conn
		least int
		want  string
	}{{before, 2, ""}, {shop, 2, "www.shop.example"}, {other, 1, "other.example"}, {elsewhere, 1, "other.example"}} {
		if _, err := c.conn.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		for _, name := range peerNames(t, watch, c.conn, c.least) {
			if name != c.want {
				t.Errorf("the peer of %s is %q, want %q", c.conn.LocalAddr(), name, c.want)
			}
		}
	}
	n.must(t, "unload", "dns", "--detach")
	watch.waitFor(t, "no more names are learned: ")
	n.must(t, "unload", "--all", "--detach")
}

// eventName is the name that an event has for the peer of a connection.
func eventName(t *testing.T, watch *background, conn net.Conn, event string) string {
	t.Helper()
	local := conn.LocalAddr().(*net.TCPAddr).AddrPort()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		for line := range strings.Lines(watch.stdout.String()) {
			var doc flow.EventDocument
			if json.Unmarshal([]byte(line), &doc) != nil {
				break // it isn't all there
			}
			if l := doc.Network.Local; doc.Event == event && *l.Address == local.Addr().Unmap() && *l.Port == local.Port() {
				return sample.Value(doc.Network.Peer.Name)
			}
		}
	}
	t.Fatalf("%s isn't %s: %s%s", local, event, watch.stdout.String(), watch.stderr.String())
	return ""
}

// TestNamesOfConnections: a connection is called what was asked for when it began, also
// at its end, by which time the address has got another name.
func TestNamesOfConnections(t *testing.T) {
	n := newNode(t)
	serveNames(t, n, map[string][]string{"www.shop.example.": {"A " + addressB}, "other.example.": {"A " + addressB}})
	n.serveBytes(t)
	n.must(t, "load", "dns")
	n.must(t, "attach", "tc", "dns", "--dev", "veth-a", "--direction", "both")
	n.must(t, "load", "flows")
	n.must(t, "attach", "trace", "flows")
	watch := startWatch(t, n.bpfnet("watch", "connections", "--names", "--since-load", "--peer", addressB+"/32", "-o", "ndjson"))
	n.askFor(t, "www.shop.example.", "udp")
	shop := n.connect(t, n.podA)
	opened := eventName(t, watch, shop, "opened")
	n.askFor(t, "other.example.", "udp")
	shop.Close()
	if closed := eventName(t, watch, shop, "closed"); opened != "www.shop.example" || closed != opened {
		t.Errorf("its peer is %q when it is opened and %q when it is closed", opened, closed)
	}
	n.must(t, "unload", "dns", "--detach")
	watch.waitFor(t, "no more names are learned: ")
	n.must(t, "unload", "--all", "--detach")
}
