package test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	wire "github.com/miekg/dns"

	"bpfnet/internal/netns"
)

// nameServer answers for a node, on its host's address: records by "NAME TYPE", in
// the words of a zone file. A name without any isn't there; "silent." gets no answer.
type nameServer struct {
	mu      sync.Mutex
	records map[string][]string
}

// serveNames starts one, which the node's resolv.conf names.
func serveNames(t *testing.T, n node, records map[string][]string) *nameServer {
	t.Helper()
	s := &nameServer{records: records}
	var packets net.PacketConn
	var listener net.Listener
	err := netns.Do("/run/netns/"+n.host, func() (err error) {
		if packets, err = net.ListenPacket("udp", "10.77.0.1:53"); err == nil {
			listener, err = net.Listen("tcp", "10.77.0.1:53")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, server := range []*wire.Server{{PacketConn: packets, Handler: s}, {Listener: listener, Handler: s}} {
		go server.ActivateAndServe()
		t.Cleanup(func() { _ = server.Shutdown() })
	}
	dir := filepath.Join("/etc/netns", n.host)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	conf := "nameserver 10.77.0.1\noptions timeout:1 attempts:1\n"
	if err := os.WriteFile(filepath.Join(dir, "resolv.conf"), []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *nameServer) set(name string, records ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.records[name] = records
}

func (s *nameServer) ServeDNS(w wire.ResponseWriter, q *wire.Msg) {
	s.mu.Lock()
	defer s.mu.Unlock()
	reply := new(wire.Msg).SetReply(q)
	name := strings.ToLower(q.Question[0].Name)
	if strings.HasPrefix(name, "silent.") {
		return
	}
	known := false
	for len(name) > 0 {
		next := ""
		for _, line := range s.records[name] {
			known = true
			record, err := wire.NewRR(name + " 5 " + line)
			if err != nil {
				panic(err)
			}
			if alias, ok := record.(*wire.CNAME); ok {
				next = alias.Target
			} else if record.Header().Rrtype != q.Question[0].Qtype {
				continue
			}
			reply.Answer = append(reply.Answer, record)
		}
		name = next
	}
	if !known {
		reply.Rcode = wire.RcodeNameError
	}
	_ = w.WriteMsg(reply)
}

// reaches says whether Pod A reaches Pod B, at once.
func (n node) reaches(t *testing.T, address string) bool {
	t.Helper()
	err := exec.Command("nsenter", "--net=/run/netns/"+n.podA, "ping", "-q", "-c1", "-W1", address).Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return err == nil
}

// Pod B is blocked by its name, as long as the name leads to it.
func TestDomains(t *testing.T) {
	n := newNode(t)
	names := serveNames(t, n, map[string][]string{
		"evil.example.": {"CNAME cdn.example."}, "cdn.example.": {"A 10.77.0.5", "AAAA fd77::5"},
	})
	n.must(t, "load", "blocklist")
	n.must(t, "attach", "tc", "blocklist", "--dev", "veth-a", "--direction", "both")
	reach := func(want bool) {
		t.Helper()
		for _, address := range []string{"10.77.0.5", "fd77::5"} {
			if got := n.reaches(t, address); got != want {
				t.Errorf("%s: reached: %v", address, got)
			}
		}
	}
	reach(true)
	add := []string{"blocklist", "add", "--domain", "evil.example", "--force", "--reason", "case 7", "-q", "-o", "json"}
	n.must(t, add...)
	reach(false)
	var found struct {
		Verdict string
		Entries []struct{ Prefix, Domain, Reason, FoundBy string }
	}
	if err := json.Unmarshal([]byte(n.must(t, "blocklist", "test", "10.77.0.5", "-o", "json")), &found); err != nil {
		t.Fatal(err)
	}
	if found.Verdict != "alert+drop" || len(found.Entries) != 1 || found.Entries[0].Domain != "evil.example" || found.Entries[0].Reason != "case 7: evil.example > cdn.example" {
		t.Errorf("%+v", found)
	}
	// Other names, with a server that fails or is silent, take nothing away.
	out, err := n.bpfnet("blocklist", "add", "--domain", "silent.example", "--domain", "gone.example").CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 8 {
		t.Errorf("%v: %s", err, out)
	}
	for _, want := range []string{"not resolved: gone.example: no such name (NXDOMAIN)", "not resolved: silent.example: no answer", "no answer for 1 of 2"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("%q isn't in %s", want, out)
		}
	}
	reach(false)
	// What is listed goes in again.
	saved := filepath.Join(t.TempDir(), "saved.ndjson")
	if err := os.WriteFile(saved, []byte(n.must(t, "blocklist", "export", "-o", "ndjson")), 0o600); err != nil {
		t.Fatal(err)
	}
	_ = n.bpfnet("blocklist", "import", saved, "--list", "copy", "--force", "-q").Run() // exit 8: silent.example
	if out := n.must(t, "blocklist", "export", "--list", "copy"); out != fmt.Sprintln("evil.example  # case 7")+"gone.example\nsilent.example\n" {
		t.Errorf("copied: %s", out)
	}
	n.must(t, "blocklist", "clear", "--list", "copy")
	// The name leads elsewhere: the grace is over in a second.
	names.set("cdn.example.", "A 10.77.0.77")
	n.must(t, append(add, "--grace", "1s")...)
	n.must(t, "status", "--interval", "2s", "--once", "-q")
	reach(true)
	names.set("cdn.example.", "A 10.77.0.5", "AAAA fd77::5")
	n.must(t, add...)
	reach(false)
	n.must(t, "blocklist", "remove", "--domain", "evil.example")
	reach(true)
}
