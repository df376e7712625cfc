package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	wire "github.com/miekg/dns"

	"bpfnet/internal/datapath"
	"bpfnet/internal/fault"
	"bpfnet/internal/netns"
	"bpfnet/internal/testkit"
)

// shortTimeout is when tests take a query as unanswered.
const shortTimeout = 400 * time.Millisecond

// watchDNS reads what program dns sees at some places of a namespace.
func watchDNS(t *testing.T, namespace string, places ...datapath.AttachRequest) *Watcher {
	t.Helper()
	engine, _ := attach(t, namespace, places...)
	return openWatcher(t, engine)
}

func openWatcher(t *testing.T, engine *datapath.Engine) *Watcher {
	t.Helper()
	w, err := Watch(context.Background(), engine, "dns", shortTimeout, time.Minute, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.Close() })
	return w
}

// onDevice is both ways of "a".
var onDevice = datapath.AttachRequest{Hook: "tc", Device: "a", Direction: datapath.Both}

// exchanged reads exchanges until there are so many, and a moment longer: there are no
// more.
func exchanged(t *testing.T, w *Watcher, count int) []*Exchange { return exchangedAt(t, w, count, nil) }

// exchangedAt reads those of some places.
func exchangedAt(t *testing.T, w *Watcher, count int, passes func(Place) bool) (all []*Exchange) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var begun []*Exchange
	err := w.Read(ctx, Watching{
		Passes: passes,
		Begun:  func(some []*Exchange) { begun = append(begun, some...) },
		Tell: func(some []*Exchange) error {
			if all = append(all, some...); len(all) >= count {
				time.AfterFunc(300*time.Millisecond, cancel)
			}
			return nil
		},
		Idle: func() error { return nil },
	})
	if err != nil || len(all) != count {
		t.Fatalf("%v after %d exchanges, want %d: %s", err, len(all), count, summaries(all))
	}
	for _, x := range all {
		if !slices.Contains(begun, x) {
			t.Errorf("%s never began", summary(x))
		}
	}
	return all
}

// summary is what doesn't differ from run to run.
func summary(x *Exchange) string {
	text := fmt.Sprintf("%s %s %s %s %s %s", x.Status, x.Transport, x.Name, x.Type, x.Class, x.Rcode)
	for _, r := range x.Answers {
		text += fmt.Sprintf(" [%s %s %s %s]", r.Name, r.Type, r.TTL, r.Data)
	}
	if x.Truncated {
		text += " truncated"
	}
	if x.Retries > 0 {
		text += fmt.Sprintf(" retries=%d", x.Retries)
	}
	return text
}

func summaries(all []*Exchange) string {
	var lines []string
	for _, x := range all {
		lines = append(lines, summary(x))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// client is a socket of a namespace that asks a server.
type client struct {
	t *testing.T
	*wire.Conn
}

func dialIn(t *testing.T, namespace, network, server string) client {
	t.Helper()
	var conn net.Conn
	err := netns.Do(namespace, func() (err error) {
		conn, err = net.Dial(network, net.JoinHostPort(server, "53"))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return client{t, &wire.Conn{Conn: conn, UDPSize: 4096}}
}

// ask sends a question with a number.
func (c client) ask(id uint16, name string, qtype uint16) {
	c.t.Helper()
	q := new(wire.Msg).SetQuestion(name, qtype)
	q.Id = id
	if err := c.WriteMsg(q); err != nil {
		c.t.Fatal(err)
	}
}

// answered waits for the next response.
func (c client) answered() {
	c.t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := c.ReadMsg(); err != nil {
		c.t.Fatal(err)
	}
}

// behave is a server that does what the first label of the name says.
func behave(t *testing.T) func(w wire.ResponseWriter, q, reply *wire.Msg) {
	const name = "x.example."
	return func(w wire.ResponseWriter, q, reply *wire.Msg) {
		asked := q.Question[0].Name
		switch label, _, _ := strings.Cut(strings.ToLower(asked), "."); label {
		case "silent":
			return
		case "slow":
			time.Sleep(50 * time.Millisecond)
		case "missing":
			reply.Rcode = wire.RcodeNameError
		case "broken":
			reply.Rcode = wire.RcodeServerFailure
		case "version":
			reply.SetEdns0(1232, false)
			reply.Rcode = wire.RcodeBadVers
		case "unreadable":
			reply.Rcode, reply.Question = wire.RcodeFormatError, nil
		case "cut":
			reply.Truncated = !isTCP(w)
		case "twice":
			_ = w.WriteMsg(reply)
			time.Sleep(20 * time.Millisecond)
		default:
			reply.Answer = rrs(t, asked+" 60 CNAME "+name, name+" 30 A 192.0.2.1", name+` 0 TXT "a\"\027[31m"`)
		}
		_ = w.WriteMsg(reply)
	}
}

// TestExchanges has each kind of exchange, by both families and transports.
func TestExchanges(t *testing.T) {
	nsA, nsB := testkit.Pair(t)
	for _, server := range []string{"10.77.0.2", "fd77::2"} {
		serve(t, nsB, net.JoinHostPort(server, "53"), behave(t))
	}
	for _, server := range []string{"10.77.0.2", "fd77::2"} {
		for _, network := range []string{"udp", "tcp"} {
			t.Run(network+" "+server, func(t *testing.T) {
				w := watchDNS(t, nsA, onDevice)
				c := dialIn(t, nsA, network, server)
				before := time.Now()
				names := []string{"Www.Example.", "slow.example.", "missing.example.", "broken.example.", "version.example.", "unreadable.example.", "cut.example."}
				for i, name := range names {
					c.ask(uint16(i), name, wire.TypeA)
				}
				for range names {
					c.answered()
				}
				c.ask(100, "silent.example.", wire.TypeAAAA)
				all := exchanged(t, w, 8)
				wanted := `answered NET broken.example A IN servfail
answered NET cut.example A IN noerror
answered NET missing.example A IN nxdomain
answered NET slow.example A IN noerror
answered NET unreadable.example A IN formerr
answered NET version.example A IN badvers
answered NET www.example A IN noerror [www.example CNAME 1m0s x.example.] [x.example A 30s 192.0.2.1] [x.example TXT 0s "a\"\027[31m"]
unanswered NET silent.example AAAA IN `
				if network == "udp" {
					wanted = strings.Replace(wanted, "cut.example A IN noerror", "cut.example A IN noerror truncated", 1)
				}
				want(t, summaries(all), strings.ReplaceAll(wanted, "NET", network))
				for _, x := range all {
					checkExchange(t, x, c, before)
				}
				if got := w.Counters(); got != (Counters{}) {
					t.Errorf("%+v", got)
				}
			})
		}
	}
}

// checkExchange checks who talked to whom, when and how long.
func checkExchange(t *testing.T, x *Exchange, c client, before time.Time) {
	t.Helper()
	if x.Client.String() != c.LocalAddr().String() || x.Server.String() != c.RemoteAddr().String() {
		t.Errorf("%s: %s asks %s", summary(x), x.Client, x.Server)
	}
	if x.Time.Before(before.Add(-time.Millisecond)) || x.Time.After(time.Now()) {
		t.Errorf("%s: at %s", summary(x), x.Time)
	}
	least, most := time.Duration(0), time.Second
	switch {
	case x.Status != Answered:
		least, most = Unmeasured, Unmeasured
	case x.Name == "slow.example":
		least = 50 * time.Millisecond
	}
	if x.Latency < least || x.Latency > most {
		t.Errorf("%s: %s", summary(x), x.Latency)
	}
	if x.Place.AtCgroup || x.Place.Ingress || x.Place.FromAsker || x.Place.IfIndex == 0 {
		t.Errorf("%s: at %+v", summary(x), x.Place)
	}
}

// TestExchangesAgain: what is sent again is one exchange, and one number may be used
// again.
func TestExchangesAgain(t *testing.T) {
	nsA, nsB := testkit.Pair(t)
	serve(t, nsB, "10.77.0.2:53", behave(t))
	w := watchDNS(t, nsA, onDevice)
	c := dialIn(t, nsA, "udp", "10.77.0.2")
	for range 3 {
		c.ask(1, "silent.example.", wire.TypeA)
		time.Sleep(20 * time.Millisecond)
	}
	for range 2 { // the second one while the server sleeps
		c.ask(2, "slow.example.", wire.TypeA)
		time.Sleep(10 * time.Millisecond)
	}
	c.answered()
	c.answered()
	for _, name := range []string{"a.example.", "b.example.", "a.example."} { // the same number
		c.ask(3, name, wire.TypeA)
		c.answered()
	}
	c.ask(4, "silent.example.", wire.TypeA)
	c.ask(4, "missing.example.", wire.TypeA)
	c.answered()
	all := exchanged(t, w, 7)
	const answers = " [%[1]s CNAME 1m0s x.example.] [x.example A 30s 192.0.2.1] [x.example TXT 0s \"a\\\"\\027[31m\"]"
	want(t, summaries(all), strings.Join([]string{
		fmt.Sprintf("answered udp %[1]s A IN noerror"+answers, "a.example"),
		fmt.Sprintf("answered udp %[1]s A IN noerror"+answers, "a.example"),
		fmt.Sprintf("answered udp %[1]s A IN noerror"+answers, "b.example"),
		"answered udp missing.example A IN nxdomain",
		"answered udp slow.example A IN noerror retries=1",
		"unanswered udp silent.example A IN ",
		"unanswered udp silent.example A IN  retries=2",
	}, "\n"))
}

// TestExchangesPlaces: a packet that passes several places is one exchange, seen where
// it was first, and its latency is that of this place, also where the response passes
// only others.
func TestExchangesPlaces(t *testing.T) {
	nsA, nsB := testkit.Pair(t)
	serve(t, nsB, "10.77.0.2:53", behave(t))
	cgroup := testkit.Cgroup(t)
	inner := filepath.Join(cgroup, "inner") // where who asks is
	if err := os.Mkdir(inner, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(inner) })
	inCgroup := datapath.AttachRequest{Hook: "cgroup", Cgroup: cgroup, Direction: datapath.Both}
	inInner := datapath.AttachRequest{Hook: "cgroup", Cgroup: inner, Direction: datapath.Both}
	way := func(r datapath.AttachRequest, d datapath.Direction) datapath.AttachRequest {
		r.Direction = d
		return r
	}
	for name, c := range map[string]struct {
		places   []datapath.AttachRequest
		atCgroup bool
		status   Status
	}{
		"both":                {[]datapath.AttachRequest{onDevice, inCgroup}, true, Answered},
		"device":              {[]datapath.AttachRequest{onDevice}, false, Answered},
		"cgroup":              {[]datapath.AttachRequest{inCgroup}, true, Answered},
		"in each other":       {[]datapath.AttachRequest{inCgroup, inInner}, true, Answered},
		"response at another": {[]datapath.AttachRequest{way(onDevice, datapath.Ingress), way(inCgroup, datapath.Egress)}, true, Answered},
		"only queries":        {[]datapath.AttachRequest{way(onDevice, datapath.Egress), way(inCgroup, datapath.Egress)}, true, Unanswered},
		"only responses":      {[]datapath.AttachRequest{way(onDevice, datapath.Ingress), way(inCgroup, datapath.Ingress)}, false, Unasked},
	} {
		t.Run(name, func(t *testing.T) {
			w := watchDNS(t, nsA, c.places...)
			askIn(t, nsA, inner, "10.77.0.2", "slow.example")
			for _, x := range exchanged(t, w, 2) {
				if x.Status != c.status || x.Place.AtCgroup != c.atCgroup || x.Retries != 0 {
					t.Errorf("%s at %+v", summary(x), x.Place)
				}
				if c.status == Answered && (x.Latency < 50*time.Millisecond || x.Latency > time.Second) || c.status != Answered && x.Latency != Unmeasured {
					t.Errorf("%s: %s", summary(x), x.Latency)
				}
				if known := x.Place.CgroupID > 1; known != (c.status != Unasked) || x.Place.FromAsker != c.atCgroup {
					t.Errorf("%s at %+v", summary(x), x.Place)
				}
			}
		})
	}
}

// TestExchangesOfDevice: where only a device counts, an exchange is seen there.
func TestExchangesOfDevice(t *testing.T) {
	nsA, nsB := testkit.Pair(t)
	serve(t, nsB, "10.77.0.2:53", behave(t))
	cgroup := testkit.Cgroup(t)
	w := watchDNS(t, nsA, onDevice, datapath.AttachRequest{Hook: "cgroup", Cgroup: cgroup, Direction: datapath.Both})
	askIn(t, nsA, cgroup, "10.77.0.2", "slow.example")
	for _, x := range exchangedAt(t, w, 2, func(p Place) bool { return !p.AtCgroup }) {
		if x.Place.AtCgroup || x.Status != Answered {
			t.Errorf("%s at %+v", summary(x), x.Place)
		}
	}
}

// TestExchangesFromOutside: on the side of the server, who asks is behind the interface;
// and a second response is one that nobody has asked for.
func TestExchangesFromOutside(t *testing.T) {
	nsA, nsB := testkit.Pair(t)
	serve(t, nsB, "10.77.0.2:53", behave(t))
	w := watchDNS(t, nsB, datapath.AttachRequest{Hook: "tc", Device: "b", Direction: datapath.Both})
	c := dialIn(t, nsA, "udp", "10.77.0.2")
	c.ask(1, "missing.example.", wire.TypeA)
	if x := exchanged(t, w, 1)[0]; !x.Place.FromAsker || !x.Place.Ingress || x.Status != Answered {
		t.Errorf("%s at %+v", summary(x), x.Place)
	}
	c.ask(2, "twice.example.", wire.TypeA)
	want(t, summaries(exchanged(t, w, 2)), "answered udp twice.example A IN noerror\nunasked udp twice.example A IN noerror")
}

// TestExchangesHostile: whatever a name is, it is told in printable letters.
func TestExchangesHostile(t *testing.T) {
	nsA, nsB := testkit.Pair(t)
	serve(t, nsB, "10.77.0.2:53", behave(t))
	w := watchDNS(t, nsA, onDevice)
	c := dialIn(t, nsA, "udp", "10.77.0.2")
	label := strings.Repeat("a", 63)
	names := map[string]string{ // as in a zone file, and as told
		`missing.\027]0;title\007.example.`:           `missing.\027]0\;title\007.example`,
		`missing.\000.example.`:                       `missing.\000.example`,
		`missing.a\.b.\"\\.example.`:                  `missing.a\.b.\"\\.example`,
		`missing.` + strings.Repeat(label+".", 3):     `missing.` + strings.Repeat(label+".", 2) + label,
		`missing.` + strings.Repeat(`\255`, 63) + `.`: `missing.` + strings.Repeat(`\255`, 63),
		`missing.<script>.example.`:                   `missing.<script>.example`,
	}
	var wanted []string
	for name, told := range names {
		c.ask(1, name, wire.TypeA)
		c.answered()
		wanted = append(wanted, "answered udp "+told+" A IN nxdomain")
	}
	for _, garbage := range [][]byte{{1}, make([]byte, 12), append(make([]byte, 20), 0xc0, 20, 0, 1, 0, 1)} {
		if _, err := c.Conn.Conn.Write(garbage); err != nil {
			t.Fatal(err)
		}
	}
	c.ask(2, ".", 65280)
	c.answered()
	wanted = append(wanted, "answered udp . TYPE65280 IN noerror [. CNAME 1m0s x.example.] [x.example A 30s 192.0.2.1] [x.example TXT 0s \"a\\\"\\027[31m\"]")
	wanted = append(wanted, "unasked udp    formerr", "unasked udp    formerr") // to what it can't read
	slices.Sort(wanted)
	want(t, summaries(exchanged(t, w, len(wanted))), strings.Join(wanted, "\n"))
	if got := w.Counters(); got.Malformed != 2 { // one byte is none at all
		t.Errorf("%+v", got)
	}
}

// TestExchangesFlood: of what comes faster than it is read, and of what is too much at
// once, nothing is lost uncounted.
func TestExchangesFlood(t *testing.T) {
	nsA, _ := testkit.Pair(t)
	w := watchDNS(t, nsA, datapath.AttachRequest{Hook: "tc", Device: "a", Direction: datapath.Egress})
	c := dialIn(t, nsA, "udp", "10.77.0.2")
	q := packed(t, new(wire.Msg).SetQuestion("flood.example.", wire.TypeA))
	const sent = 30_000
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	passed := make(chan int, 1)
	go func() {
		written := 0
		for i := range sent {
			q[0], q[1] = byte(i>>8), byte(i)
			if _, err := c.Conn.Conn.Write(q); err == nil { // else it says that nobody listens there
				written++
			}
		}
		passed <- written
		time.AfterFunc(4*shortTimeout, cancel)
	}()
	told := 0
	err := w.Read(ctx, Watching{Begun: func([]*Exchange) {}, Idle: func() error { return nil }, Tell: func(some []*Exchange) error {
		for _, x := range some {
			told += 1 + x.Retries
		}
		return nil
	}})
	lost, lostErr := w.Lost()
	if err != nil || lostErr != nil {
		t.Fatal(err, lostErr)
	}
	if written := <-passed; told == 0 || uint64(told)+lost+w.Forgotten() != uint64(written) {
		t.Errorf("%d told, %d lost, %d forgotten, of %d", told, lost, w.Forgotten(), written)
	}
}

// TestWatcherWants: queries are told only while there is a watcher.
func TestWatcherWants(t *testing.T) {
	nsA, nsB := testkit.Pair(t)
	serve(t, nsB, "10.77.0.2:53", behave(t))
	engine, _ := attach(t, nsA, onDevice)
	w := openWatcher(t, engine)
	_ = w.Close()
	c := dialIn(t, nsA, "udp", "10.77.0.2")
	c.ask(1, "missing.example.", wire.TypeA)
	c.answered()
	w = openWatcher(t, engine)
	want(t, summaries(exchanged(t, w, 1)), "unasked udp missing.example A IN nxdomain")
	_ = w.Close()
	if _, err := Watch(context.Background(), engine, "other", shortTimeout, time.Minute, false); !errors.Is(err, fault.ErrNotFound) {
		t.Error(err)
	}
}

// TestExchangesBounded: what is kept is bounded, whatever comes, and what found no room
// is counted.
func TestExchangesBounded(t *testing.T) {
	x := newExchanges(time.Hour)
	s := sighting{time: time.Hour, message: message{question: question{"a.example", 1, 1}}, client: netip.MustParseAddrPort("10.0.0.1:1")}
	for i := range 2 * mostExchanges {
		s.id, s.client = uint16(i), netip.AddrPortFrom(s.client.Addr(), uint16(1+i>>16))
		s.time++
		x.add(s)
	}
	for i := range 2 * mostAlike {
		s.question.qtype = uint16(i)
		x.add(s)
	}
	begun, told := x.take()
	if len(told) != 0 || x.count > mostExchanges || int(x.forgot)+x.count != len(begun) {
		t.Errorf("%d told; %d of %d are kept, %d forgotten", len(told), x.count, len(begun), x.forgot)
	}
	count := 0
	for _, alike := range x.open {
		if count += len(alike); len(alike) == 0 || len(alike) > mostAlike {
			t.Fatalf("%d alike", len(alike))
		}
	}
	if count != x.count {
		t.Errorf("%d are kept, counted as %d", count, x.count)
	}
	x.sweep(2*time.Hour + time.Minute)
	if _, told := x.take(); len(told) != count || x.count != 0 || len(x.open) != 0 {
		t.Errorf("%d told of %d, %d are left", len(told), count, x.count)
	}
}
