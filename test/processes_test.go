package test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// hitAlert is what is wanted of an alert of the rule blocklist.
type hitAlert struct {
	StartedAt time.Time `json:"started_at"`
	Evidence  struct {
		Prefix  netip.Prefix
		DevName string
		Network struct{ Transport string }
		Process *struct {
			PID, Owners         int
			Executable, Command string
			StartTime           time.Time `json:"start_time"`
		}
	}
	seen time.Time
}

// alertWatch is a watch that runs until the test ends.
type alertWatch struct {
	*testing.T
	node
	cmd    *exec.Cmd
	mu     sync.Mutex
	alerts []hitAlert
}

func (n node) watchAlerts(t *testing.T) *alertWatch {
	t.Helper()
	w := &alertWatch{T: t, node: n, cmd: n.bpfnet("watch", "alerts", "-o", "ndjson")}
	out, err := w.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	serve(t, w.cmd)
	go func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			a := hitAlert{seen: time.Now()}
			if err := json.Unmarshal(lines.Bytes(), &a); err != nil {
				t.Errorf("%v in %s", err, lines.Text())
			}
			w.mu.Lock()
			w.alerts = append(w.alerts, a)
			w.mu.Unlock()
		}
	}()
	return w
}

// all are the alerts so far.
func (w *alertWatch) all() []hitAlert {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.alerts)
}

// of waits for the alert of an address on a list.
func (w *alertWatch) of(address string) hitAlert {
	w.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		all := w.all()
		if i := slices.IndexFunc(all, func(a hitAlert) bool { return a.Evidence.Prefix.Addr() == netip.MustParseAddr(address) }); i >= 0 {
			return all[i]
		}
	}
	w.Fatalf("no alert of %s", address)
	return hitAlert{}
}

// run starts a script in a network namespace, of which it returns the pid once that has
// written it. It ends with the test.
func (n node) run(t *testing.T, ns, script string) (pid int) {
	t.Helper()
	cmd := exec.Command("nsenter", "--net=/run/netns/"+ns, "bash", "-euc", script)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); _ = cmd.Wait() })
	line, _ := bufio.NewReader(out).ReadString('\n')
	if pid, err = strconv.Atoi(strings.TrimSpace(line)); err != nil {
		t.Fatalf("%s: %q", script, line)
	}
	return pid
}

// TestAlertProcess has processes send and get packets of listed addresses, each of
// which one alert tells of, and looks whom it names. Where the machine is busy there
// may be no time to look for the process: then it is tried again, with another address.
func TestAlertProcess(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.must(t, "load", "blocklist")
	for _, dev := range []string{"veth-a", "br0"} {
		n.must(t, "attach", "tc", "blocklist", "--dev", dev, "--direction", "both")
	}
	// What no Pod has is dropped, what Pod B has goes on. It knows Pod A, so that
	// nothing but connections meets the lists.
	n.sh(t, `nsenter --net=/run/netns/$POD_A ip -6 route add default via fd77::1
nsenter --net=/run/netns/$POD_B ip neigh replace fd77::4 dev eth0 nud permanent lladdr $(nsenter --net=/run/netns/$POD_A ip -j link show eth0 | jq -r '.[0].address')
for k in {10..59}; do
	echo 198.51.100.$k; echo 2001:db8:bad::$k
	nsenter --net=/run/netns/$POD_B ip addr add 10.77.0.1$k/24 dev eth0
	nsenter --net=/run/netns/$POD_B ip addr add fd77::1$k/64 dev eth0 nodad
done | bpfnet --netns $HOST blocklist import - --list drops
for k in {10..59}; do echo 10.77.0.1$k; echo fd77::1$k; done | bpfnet --netns $HOST blocklist import - --list watched --force
bpfnet --netns $HOST blocklist action alert --list watched`)
	w := n.watchAlerts(t)
	const listen = "echo $$; exec socat -u TCP6-LISTEN:80%d,ipv6only=0 OPEN:/dev/null"
	for i, c := range []struct {
		what, prefix string
		ns, script   string // whose process it is
		peer         string // what Pod B does then
		command      string
		owners       int
	}{
		{"a connection", "198.51.100.", n.podA, "echo $$; exec socat -u OPEN:/dev/null TCP:198.51.100.%d:443,connect-timeout=60", "", "socat", 1},
		{"one of IPv6", "2001:db8:bad::", n.podA, "echo $$; exec socat -u OPEN:/dev/null TCP6:[2001:db8:bad::%d]:443,connect-timeout=60", "", "socat", 1},
		{"a datagram", "198.51.100.", n.podA, "exec < <(sleep .1; echo x; sleep 60); echo $$; exec socat -u STDIN UDP-SENDTO:198.51.100.%d:53", "", "socat", 1},
		{"a socket of two", "198.51.100.", n.podA, "exec 3<>/dev/udp/198.51.100.%d/53; sleep 60 & echo $$; sleep .1; echo x >&3; wait", "", "bash", 2},
		{"a listener", "10.77.0.1", n.podA, listen, "echo $$; exec < <(sleep 60); exec socat -u STDIN TCP:10.77.0.4:80%[1]d,bind=10.77.0.1%[1]d,retry=20,interval=.1", "socat", 1},
		{"one of IPv6", "fd77::1", n.podA, listen, "echo $$; exec < <(sleep 60); exec socat -u STDIN TCP6:[fd77::4]:80%[1]d,bind=[fd77::1%[1]d],retry=20,interval=.1", "socat", 1},
		{"one of the host", "10.77.0.1", n.host, "sleep 60 & exec 3<>/dev/udp/10.77.0.1%d/53; echo $$; echo x >&3; wait", "", "bash", 1},
	} {
		for k := 10 + 7*i; ; k++ {
			pid, began := n.run(t, c.ns, fmt.Sprintf(c.script, k)), time.Now()
			if c.peer != "" {
				n.run(t, n.podB, fmt.Sprintf(c.peer, k))
			}
			got := w.of(fmt.Sprint(c.prefix, k)).Evidence.Process
			if got == nil && k < 16+7*i {
				t.Logf("%s: again", c.what)
				time.Sleep(time.Second)
				continue
			}
			if got == nil || got.PID != pid || got.Owners != c.owners || got.Command != c.command || filepath.Base(got.Executable) != c.command || began.Sub(got.StartTime).Abs() > 20*time.Second {
				t.Errorf("%s: %+v, want process %d", c.what, got, pid)
			}
			break
		}
	}

	// One that has ended when the alert is read.
	_ = w.cmd.Process.Signal(syscall.SIGSTOP)
	n.sh(t, "nsenter --net=/run/netns/$POD_A bash -c 'echo x >/dev/udp/198.51.100.59/53'")
	_ = w.cmd.Process.Signal(syscall.SIGCONT)
	if got := w.of("198.51.100.59").Evidence.Process; got != nil {
		t.Errorf("a process that has ended: %+v", got)
	}
}

// TestAlertFlood prints how long alerts take that come as fast as a shell sends, and
// those of a scan of a few hundred addresses a second, and how many of them have the
// process.
func TestAlertFlood(t *testing.T) {
	n := newNode(t)
	n.must(t, "load", "blocklist")
	n.must(t, "attach", "tc", "blocklist", "--dev", "veth-a", "--direction", "ingress")
	n.must(t, "blocklist", "add", addressA, "--force")
	n.run(t, n.podA, "echo $$; exec sleep 60") // by which the namespace is known
	w := n.watchAlerts(t)
	time.Sleep(time.Second)
	for _, flood := range []string{
		"for i in {1..12}; do for k in {1..250}; do echo >/dev/udp/10.9.$i.$k/9; done; done",
		"exec 9<> <(sleep 9); for i in {1..4}; do for k in {1..250}; do echo >/dev/udp/10.10.$i.$k/9; read -rt .002 -u 9 || :; done; done",
	} {
		before := len(w.all())
		began := time.Now()
		n.sh(t, "nsenter --net=/run/netns/$POD_A bash -c '"+flood+"'")
		lasted := time.Since(began)
		time.Sleep(time.Second)
		var took []time.Duration
		known := 0
		for _, a := range w.all()[before:] {
			took = append(took, a.seen.Sub(a.StartedAt))
			if a.Evidence.Process != nil {
				known++
			}
		}
		slices.Sort(took)
		if len(took) == 0 {
			t.Fatal("no alerts")
		}
		t.Logf("%d alerts in %s, %d with their process, after %s (median), %s (99 %%), %s (most)",
			len(took), lasted.Round(time.Millisecond), known, took[len(took)/2], took[len(took)*99/100], took[len(took)-1])
	}
}
