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
	"time"

	"github.com/cilium/ebpf"
	wire "github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"bpfnet/bpf"
	"bpfnet/internal/netns"
)

// nameServer answers for a node, on its host's address: records by "NAME TYPE", in
// the words of a zone file. A name without any isn't there; "silent." gets no answer.
type nameServer struct {
	mu      sync.Mutex
	records map[string][]string
	asked   int
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
	conf := "nameserver 10.77.0.1\noptions timeout:3 attempts:1\n"
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
	s.asked++
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

// askFor has Pod A ask for an address of a name, as its programs do.
func (n node) askFor(t *testing.T, name string, network string) {
	t.Helper()
	err := netns.Do("/run/netns/"+n.podA, func() error {
		reply, _, err := (&wire.Client{Net: network}).Exchange(new(wire.Msg).SetQuestion(name, wire.TypeA), "10.77.0.1:53")
		if err == nil && len(reply.Answer) == 0 {
			err = errors.New("no answer")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// background is a command that runs beside the test.
type background struct {
	cmd            *exec.Cmd
	stdout, stderr shared
	ended          chan error
}

// shared is a buffer that is read while it is written.
type shared struct {
	mu   sync.Mutex
	text strings.Builder
}

func (s *shared) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(p)
}

func (s *shared) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// startWatch starts a command, which the test ends at the latest.
func startWatch(t *testing.T, cmd *exec.Cmd) *background {
	t.Helper()
	b := &background{cmd: cmd, ended: make(chan error, 1)}
	cmd.Stdout, cmd.Stderr = &b.stdout, &b.stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	go func() { b.ended <- cmd.Wait() }()
	return b
}

// waitFor waits until the command has said something.
func (b *background) waitFor(t *testing.T, text string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !strings.Contains(b.stderr.String(), text); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%q isn't in %s%s", text, b.stdout.String(), b.stderr.String())
		}
	}
}

// wait waits for the end, and returns what was printed.
func (b *background) wait(t *testing.T) string {
	t.Helper()
	if err := <-b.ended; err != nil {
		t.Fatalf("%v: %s", err, b.stderr.String())
	}
	return b.stdout.String()
}

// Who asks for a name below a wildcard doesn't reach its address for long: each
// attachment, each transport.
func TestAnswersOnTheWire(t *testing.T) {
	for _, network := range []string{"udp", "tcp"} {
		t.Run(network, func(t *testing.T) {
			n := newNode(t)
			serveNames(t, n, map[string][]string{"www.bad.example.": {"CNAME cdn.example."}, "cdn.example.": {"A 10.77.0.5"}})
			n.must(t, "load", "blocklist")
			n.must(t, "attach", "tc", "blocklist", "--dev", "veth-a", "--direction", "both")
			n.must(t, "load", "dns")
			n.must(t, "attach", "tc", "dns", "--dev", "veth-a", "--direction", "both")
			n.must(t, "blocklist", "add", "--domain", "*.bad.example", "--force", "-q")
			watch := startWatch(t, n.bpfnet("watch", "alerts", "--for", "30s", "--count", "1", "-o", "ndjson"))
			if !n.reaches(t, "10.77.0.5") {
				t.Fatal("no way before the answer")
			}
			n.askFor(t, "www.bad.example.", network)
			watch.waitFor(t, "list default blocks 10.77.0.5")
			t.Log(strings.TrimSpace(watch.stderr.String()))
			if n.reaches(t, "10.77.0.5") {
				t.Error("10.77.0.5 is reached")
			}
			var alert struct {
				Evidence struct {
					FoundBy string `json:"found_by"`
					Domain  string
					Reason  string
					Dropped bool
				}
			}
			if err := json.Unmarshal([]byte(watch.wait(t)), &alert); err != nil {
				t.Fatal(err)
			}
			if e := alert.Evidence; e.FoundBy != "answer" || e.Domain != "*.bad.example" || e.Reason != "www.bad.example > cdn.example" || !e.Dropped {
				t.Errorf("%+v", e)
			}
		})
	}
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

// blocks waits until a list blocks an address, and does something again and again
// meanwhile.
func (n node) blocks(t *testing.T, address string, meanwhile func()) bool {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		meanwhile()
		if strings.Contains(n.must(t, "blocklist", "test", address, "-o", "json"), `"verdict": "alert+drop"`) {
			return true
		}
	}
	return false
}

// A watch goes on with an instance of dns that is loaded anew.
func TestAnswersOfDNSLoadedAnew(t *testing.T) {
	n := newNode(t)
	names := serveNames(t, n, map[string][]string{})
	n.must(t, "load", "blocklist")
	n.must(t, "blocklist", "add", "--domain", "*.bad.example", "--force", "-q")
	watch := startWatch(t, n.bpfnet("watch", "alerts", "--for", "60s"))
	watch.waitFor(t, "addresses of domains in answers aren't seen: bpfnet load dns")
	for i, load := range [][]string{{"load", "dns"}, {"load", "dns"}, {"load", "dns", "--replace"}} {
		n.must(t, load...)
		if i < 2 {
			n.must(t, "attach", "tc", "dns", "--dev", "veth-a", "--direction", "both")
		}
		address := fmt.Sprintf("10.77.0.%d", 100+i)
		names.set("www.bad.example.", "A "+address)
		if !n.blocks(t, address, func() { n.askFor(t, "www.bad.example.", "udp") }) {
			t.Errorf("%s is not blocked: %s", address, watch.stderr.String())
		}
		if i == 0 {
			n.must(t, "unload", "dns", "--detach")
			watch.waitFor(t, "answers are no longer seen: no loaded program \"dns\"")
		}
	}
}

// Domains are blocked while nobody reads what a watch prints.
func TestAnswersWithoutReader(t *testing.T) {
	n := newNode(t)
	names := serveNames(t, n, map[string][]string{})
	n.must(t, "load", "blocklist")
	n.must(t, "attach", "tc", "blocklist", "--dev", "veth-a", "--direction", "both")
	n.must(t, "load", "dns")
	n.must(t, "attach", "tc", "dns", "--dev", "veth-a", "--direction", "both")
	n.must(t, "blocklist", "add", "--domain", "*.bad.example", "--force", "-q")
	loud := []string{"blocklist", "add", "--list", "loud", "-q"}
	for i := range 40 { // each makes an alert; more of them than a page has room for
		loud = append(loud, fmt.Sprintf("203.0.113.%d", i+1))
	}
	n.must(t, loud...)
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	defer writer.Close()
	if _, err := unix.FcntlInt(writer.Fd(), unix.F_SETPIPE_SZ, os.Getpagesize()); err != nil {
		t.Fatal(err)
	}
	cmd := n.bpfnet("watch", "alerts", "-o", "ndjson")
	cmd.Stdout = writer
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = cmd.Process.Kill(), cmd.Wait() })
	send := "for i in {1..40}; do echo >/dev/udp/203.0.113.$i/9; done"
	if out, err := exec.Command("nsenter", "--net=/run/netns/"+n.podA, "bash", "-c", send).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for waiting := 0; waiting < os.Getpagesize()/2; time.Sleep(10 * time.Millisecond) {
		if waiting, err = unix.IoctlGetInt(int(reader.Fd()), unix.TIOCINQ); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 3 {
		address := fmt.Sprintf("10.77.0.%d", 100+i)
		names.set("www.bad.example.", "A "+address)
		if !n.blocks(t, address, func() { n.askFor(t, "www.bad.example.", "udp") }) {
			t.Errorf("%s is not blocked", address)
		}
	}
}

// Exporters ask for domains that are due, one of them at a time.
func TestExportersKeepDomains(t *testing.T) {
	n := newNode(t)
	names := serveNames(t, n, map[string][]string{"evil.example.": {"A 10.77.0.77"}})
	n.must(t, "load", "blocklist")
	n.must(t, "attach", "tc", "blocklist", "--dev", "veth-a", "--direction", "both")
	n.must(t, "blocklist", "add", "--domain", "evil.example", "--force", "-q")
	if !n.reaches(t, "10.77.0.5") {
		t.Fatal("no way before")
	}
	names.set("evil.example.", "A 10.77.0.5")
	due(t, filepath.Join(n.root, "blocklist/maps/block_domains"))
	names.mu.Lock()
	before := names.asked
	names.mu.Unlock()
	exporters := []exporter{n.export(t), n.export(t)}
	if !n.blocks(t, "10.77.0.5", func() {}) || n.reaches(t, "10.77.0.5") {
		t.Errorf("10.77.0.5 is not blocked: %s%s", exporters[0].notes, exporters[1].notes)
	}
	names.mu.Lock()
	defer names.mu.Unlock()
	if asked := names.asked - before; asked != 2 { // A and AAAA
		t.Errorf("asked %d times", asked)
	}
}

// due has all domains be asked for again.
func due(t *testing.T, path string) {
	t.Helper()
	m, err := ebpf.LoadPinnedMap(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	var key bpf.DomainKey
	var domain bpf.BlockDomain
	found := map[bpf.DomainKey]bpf.BlockDomain{}
	for all := m.Iterate(); all.Next(&key, &domain); {
		found[key] = domain
	}
	for key, domain := range found {
		if domain.Due = 0; m.Put(key, domain) != nil {
			t.Fatalf("%+v can't be changed", key)
		}
	}
	if len(found) == 0 {
		t.Fatal("no domains")
	}
}
