package test

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bpfnet/internal/testkit"
)

// Each fault of docs/faults.md has a defined result: an exit code, one line that
// says what happened, and a state that is the one before or the one after.

// result is what one run of bpfnet ended with.
type result struct {
	code           int // -1: a signal ended it
	stdout, stderr string
}

func runOf(cmd *exec.Cmd) result {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	_ = cmd.Run()
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// faulty runs bpfnet and checks the exit code and what stderr says.
func (n node) faulty(t *testing.T, code int, says string, args ...string) result {
	t.Helper()
	r := runOf(n.bpfnet(args...))
	r.check(t, fmt.Sprintf("%q", args), code, says)
	return r
}

func (r result) check(t *testing.T, what string, code int, says string) {
	t.Helper()
	if r.code != code || !strings.Contains(r.stderr, says) {
		t.Errorf("%s: exit %d, want %d saying %q\n%s", what, r.code, code, says, r.stderr)
	}
}

// all says whether tests that try some of many cases try all of them.
func all() bool { return os.Getenv("BPFNET_TEST_ALL") != "" }

// withRule returns a command that runs bpfnet under strace, which does to system
// calls what rule says ("error=ENOMEM:when=3") and writes them to log.
func (n node) withRule(t *testing.T, calls, rule string, args ...string) (cmd *exec.Cmd, log string) {
	t.Helper()
	if _, err := exec.LookPath("strace"); err != nil {
		t.Skip("needs strace, which makes system calls fail")
	}
	log = filepath.Join(t.TempDir(), "strace")
	run := n.bpfnet(args...)
	words := []string{"-f", "-qq", "-e", "signal=none", "-o", log, "-e", "trace=" + calls}
	if rule != "" {
		words = append(words, "-e", "inject="+calls+":"+rule)
	}
	cmd = exec.Command("strace", append(append(words, run.Path), run.Args[1:]...)...)
	cmd.Env = run.Env
	return cmd, log
}

// straced returns the lines of a log of strace.
func straced(t *testing.T, log string) []string {
	t.Helper()
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(text)), "\n")
}

// injected runs bpfnet with a rule and returns the calls that it was applied to.
func (n node) injected(t *testing.T, calls, rule string, args ...string) (hit []string, r result) {
	t.Helper()
	cmd, log := n.withRule(t, calls, rule, args...)
	r = runOf(cmd)
	return slices.DeleteFunc(straced(t, log), func(line string) bool { return !strings.Contains(line, "(INJECTED)") }), r
}

// operation is a command for tests that disturb it: what it needs, and how to
// see what it did.
type operation struct {
	name    string
	prepare []string
	command string
	look    string // a command whose stdout is part of the state
}

const prefixes = "pod-traffic/pod_prefixes"

func operations(input string) []operation {
	const (
		attachXDP = "attach xdp xdp-counter --dev veth-a --mode generic"
		attachTC  = "attach tc pod-traffic --dev veth-a --direction both"
	)
	return []operation{
		{name: "load", command: "load xdp-counter"},
		{name: "replace", prepare: []string{"load xdp-counter", attachXDP}, command: "load xdp-counter --replace --reuse-maps --prog xdp_counter"},
		{name: "attach-xdp", prepare: []string{"load xdp-counter"}, command: attachXDP},
		{name: "attach-tc", prepare: []string{"load pod-traffic"}, command: attachTC},
		{name: "detach", prepare: []string{"load xdp-counter", attachXDP}, command: "detach xdp xdp-counter"},
		{name: "unload", prepare: []string{"load xdp-counter", attachXDP}, command: "unload xdp-counter --detach"},
		{name: "set", prepare: []string{"load pod-traffic"}, command: "map set " + prefixes + " 10.0.0.0/8 1", look: "map dump " + prefixes},
		{name: "import", prepare: []string{"load pod-traffic", "map set " + prefixes + " 11.0.0.0/8 1"}, command: "map import " + prefixes + " " + input + " --replace", look: "map dump " + prefixes},
		{name: "ports", prepare: []string{"load port-filter"}, command: "ports allow 80/tcp 443/tcp", look: "ports list"},
		{name: "dump", prepare: []string{"load pod-traffic", "map import " + prefixes + " " + input}, command: "map dump " + prefixes},
		{name: "status", prepare: []string{"load xdp-counter", attachXDP}, command: "status"},
		{name: "watch", prepare: []string{"load pod-traffic", attachTC}, command: "watch pods --once"},
	}
}

// prefixFile is an input of map import.
func prefixFile(t *testing.T, count int) string {
	t.Helper()
	var text strings.Builder
	for i := range count {
		fmt.Fprintf(&text, "10.%d.%d.0/24 %d\n", i/256, i%256, i+1)
	}
	file := filepath.Join(t.TempDir(), "prefixes")
	if err := os.WriteFile(file, []byte(text.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

// disturbed is an operation on a node, with its states before and after.
type disturbed struct {
	operation
	node
	before, after string
}

func (o operation) on(t *testing.T) *disturbed {
	t.Helper()
	d := &disturbed{operation: o, node: newNode(t)}
	d.reset(t)
	d.before = d.state(t)
	d.must(t, d.words()...)
	d.after = d.state(t)
	d.reset(t)
	return d
}

func (d *disturbed) words() []string { return strings.Fields(d.command) }

func (d *disturbed) reset(t *testing.T) {
	t.Helper()
	d.must(t, "unload", "--all", "--detach")
	for _, line := range d.operation.prepare {
		d.must(t, strings.Fields(line)...)
	}
}

func (d *disturbed) state(t *testing.T) string {
	t.Helper()
	state := d.summary(t)
	if d.look != "" && state != "" {
		state += d.must(t, strings.Fields(d.look)...)
	}
	return state
}

// settled checks what a disturbed run left: the state before or after, unless
// its exit code says that something in between is meant, nothing half-made, and
// that a second run arrives where one undisturbed run does.
func (d *disturbed) settled(t *testing.T, what string, r result) {
	t.Helper()
	if strings.Contains(r.stderr, "goroutine ") {
		t.Errorf("%s: it crashed\n%s", what, r.stderr)
	}
	state := d.state(t)
	switch {
	case r.code == 0 && state != d.after:
		t.Errorf("%s: exit 0 and %s, want %s", what, state, d.after)
	case r.code != 0 && r.code != 8 && state != d.before && state != d.after:
		t.Errorf("%s: exit %d and %s\n%s", what, r.code, state, r.stderr)
	}
	d.nothingHalfMade(t)
	d.must(t, d.words()...)
	if state := d.state(t); state != d.after {
		t.Errorf("%s: a second run leads to %s, want %s", what, state, d.after)
	}
	d.restore(t)
}

// restore leads back to the state before the operation.
func (d *disturbed) restore(t *testing.T) {
	t.Helper()
	if d.before != d.after {
		d.reset(t)
	}
}

// nothingHalfMade fails if the root holds anything but whole instances.
func (n node) nothingHalfMade(t *testing.T) {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(n.root, "@*-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// refusal is an error of the kernel, and the exit codes that it may lead to where
// nothing else can be done instead.
type refusal struct {
	errno string
	codes []int
}

var refusals = []refusal{
	{"ENOMEM", []int{1, 8}},
	{"ENOSPC", []int{1, 4, 8}}, // 4: an LPM trie that is full says this
	{"EBUSY", []int{1, 4, 8}},  // 1 where cilium/ebpf tells the error only in the text
	{"EPERM", []int{1, 4, 5, 6, 8}},
	{"E2BIG", []int{1, 4, 8}},
	{"EINTR", []int{1, 8}},
	{"EAGAIN", []int{1, 8}},
	{"EMFILE", []int{1, 8}},
}

// TestRefusedSystemCalls makes bpf(2) fail once, at each of its calls in turn,
// with one error after the other. The short form takes each of few calls or every
// other of many, and each error at least once; with BPFNET_TEST_ALL=1 each call fails with each error.
func TestRefusedSystemCalls(t *testing.T) {
	input := prefixFile(t, 3)
	for i, o := range operations(input) {
		t.Run(o.name, func(t *testing.T) {
			o.on(t).refuse(t, "bpf", refusals, i, 2)
		})
	}
}

// TestRefusedNetlink does the same to the messages to the kernel's network side,
// of which the short form leaves none out.
func TestRefusedNetlink(t *testing.T) {
	errors := []refusal{{"ENOBUFS", []int{1}}, {"ENOMEM", []int{1}}, {"EPERM", []int{1, 5, 6}}, {"EINTR", []int{1}}}
	for _, o := range operations("") {
		if o.name != "attach-tc" && o.name != "attach-xdp" {
			continue
		}
		t.Run(o.name, func(t *testing.T) {
			d := o.on(t)
			for _, call := range []string{"sendto", "recvfrom"} {
				d.refuse(t, call, errors, 0, 1)
			}
		})
	}
}

// refuse lets calls of a kind fail: in the long form all calls with each of the
// errors; in the short form each call with one of them, which offset shifts, or of
// many calls one in every.
func (d *disturbed) refuse(t *testing.T, call string, errors []refusal, offset, every int) {
	t.Helper()
	count, stride := d.calls(t, call), len(errors)
	if count > 2*len(errors) {
		stride *= every
	}
	for i, e := range errors {
		if all() {
			d.refusedAtAny(t, call, e)
			continue
		}
		for k := 0; k < count; k += stride {
			d.refusedNear(t, call, e, 1+(offset+i+k)%count)
		}
	}
}

// calls counts the calls of a kind that an undisturbed run makes, of the thread
// that makes most: a rule counts those of each thread on their own.
func (d *disturbed) calls(t *testing.T, call string) int {
	t.Helper()
	cmd, log := d.withRule(t, call, "", d.words()...)
	runOf(cmd).check(t, d.command, 0, "")
	d.restore(t)
	byThread := map[string]int{}
	most := 0
	for _, line := range straced(t, log) {
		if thread, what, _ := strings.Cut(line, " "); strings.HasPrefix(strings.TrimSpace(what), call+"(") {
			byThread[thread]++
			most = max(most, byThread[thread])
		}
	}
	if most == 0 {
		t.Fatalf("%s never calls %s", d.command, call)
	}
	return most
}

// refusedAtAny lets one call after the other fail, until there is none.
func (d *disturbed) refusedAtAny(t *testing.T, call string, e refusal) {
	t.Helper()
	step := 1
	for d.refused(t, call, e, step) {
		step++
	}
	if step == 1 {
		t.Errorf("no %s was refused with %s", call, e.errno)
	}
}

// refusedNear lets one call fail, or the nearest one before it: how a run's calls
// are spread over its threads differs.
func (d *disturbed) refusedNear(t *testing.T, call string, e refusal, step int) {
	t.Helper()
	for ; step > 0; step-- {
		if d.refused(t, call, e, step) {
			return
		}
	}
	t.Errorf("no %s was refused with %s", call, e.errno)
}

// refused runs the operation and lets a call of each thread fail. It says whether
// there was such a call. The node is left as it was before.
func (d *disturbed) refused(t *testing.T, call string, e refusal, step int) bool {
	t.Helper()
	hit, r := d.injected(t, call, fmt.Sprintf("error=%s:when=%d", e.errno, step), d.words()...)
	if len(hit) == 0 {
		r.check(t, d.command, 0, "")
		d.restore(t)
		return false
	}
	what := fmt.Sprintf("%s at call %d (%.60s)", e.errno, step, hit[0])
	if r.code != 0 && !slices.Contains(e.codes, r.code) {
		t.Errorf("%s: exit %d, want one of %v\n%s", what, r.code, e.codes, r.stderr)
	}
	if r.code != 0 && !strings.Contains(r.stderr, "bpfnet: ") {
		t.Errorf("%s: exit %d without a message: %s", what, r.code, r.stderr)
	}
	d.settled(t, what, r)
	return true
}

// TestOutputFull writes to a full disk: no format hides that.
func TestOutputFull(t *testing.T) {
	n := newNode(t)
	n.must(t, "load", "pod-traffic")
	n.must(t, "map", "import", prefixes, prefixFile(t, 3))
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	commands := []string{
		"status", "prog list", "link list", "map list", "net show", "endpoint list", "programs", "doctor", "version", "--help", "map dump --help", "completion bash",
		"map dump " + prefixes, "map show " + prefixes, "map get " + prefixes + " 10.0.0.0/24", "load pod-traffic", "ports allow 80/tcp", "ports list",
		"watch pods --count 2 --interval 50ms", "status --count 2 --interval 50ms", "map watch " + prefixes + " --interval 50ms",
		"run xdp-counter --dev veth-b --mode generic", "detach tc pod-traffic", "unload port-filter",
	}
	for i, format := range []string{"-o=table", "-o=json", "-o=yaml", "-o=ndjson", "-j", "-p"} {
		n.must(t, "attach", "tc", "pod-traffic", "--dev", "veth-a", "--direction", "both")
		for k, line := range commands {
			if !all() && i > 0 && k%5 != i-1 {
				continue
			}
			cmd := n.bpfnet(append(strings.Fields(line), format)...)
			var stderr bytes.Buffer
			cmd.Stdout, cmd.Stderr = full, &stderr
			_ = cmd.Run()
			result{cmd.ProcessState.ExitCode(), "", stderr.String()}.check(t, line+" "+format, 1, "no space left on device")
		}
	}
	if got := n.summary(t); strings.Contains(got, "xdp-counter") {
		t.Errorf("what run made goes: %s", got)
	}
}

// TestOutputClosed ends commands whose reader has seen enough: that is success.
func TestOutputClosed(t *testing.T) {
	n := newNode(t)
	n.must(t, "load", "pod-traffic", "--max-entries", "pod_prefixes=30000")
	n.must(t, "map", "import", prefixes, prefixFile(t, 20000))
	for _, format := range []string{"table", "json", "yaml", "ndjson"} {
		for _, line := range []string{
			"map dump " + prefixes, "map list", "status", "prog list", "programs",
			"watch pods --interval 20ms", "status --interval 20ms", "map watch " + prefixes + " --interval 20ms",
		} {
			cmd := n.bpfnet(append(strings.Fields(line), "-o", format)...)
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			if !strings.HasPrefix(line, "map watch") { // which prints changes
				_, _ = stdout.Read(make([]byte, 10))
			}
			stdout.Close()
			_ = cmd.Wait()
			if code := cmd.ProcessState.ExitCode(); code != 0 || strings.Contains(stderr.String(), "bpfnet: ") {
				t.Errorf("%s -o %s: exit %d\n%s", line, format, code, stderr.String())
			}
		}
	}
}

// TestInputCut imports what ends too early: nothing is changed.
func TestInputCut(t *testing.T) {
	n := newNode(t)
	n.must(t, "load", "pod-traffic")
	n.must(t, "map", "import", prefixes, prefixFile(t, 5))
	for _, format := range []string{"json", "ndjson"} {
		dump := n.must(t, "map", "dump", prefixes, "-o", format)
		n.must(t, "map", "clear", prefixes)
		cmd := n.bpfnet("map", "import", prefixes, "-")
		cmd.Stdin = strings.NewReader(dump[:len(dump)-12])
		runOf(cmd).check(t, "cut "+format, 2, "nothing was changed")
		if left := n.must(t, "map", "dump", prefixes, "-o", "ndjson"); left != "" {
			t.Errorf("cut %s: %s", format, left)
		}
		n.must(t, "map", "import", prefixes, prefixFile(t, 5))
	}
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	cmd := n.bpfnet("map", "import", prefixes, "-", "--replace")
	cmd.Stdin = dir
	runOf(cmd).check(t, "an input that can't be read", 1, "is a directory")
	if left := n.must(t, "map", "dump", prefixes, "-o", "ndjson"); strings.Count(left, "\n") != 5 {
		t.Errorf("an input that can't be read: %s", left)
	}
}

// TestMapFull writes to a map without room.
func TestMapFull(t *testing.T) {
	n := newNode(t)
	n.must(t, "load", "pod-traffic", "--max-entries", "pod_prefixes=4")
	n.faulty(t, 4, "more keys than the 4 that fit", "map", "import", prefixes, prefixFile(t, 5))
	n.must(t, "map", "import", prefixes, prefixFile(t, 4))
	n.faulty(t, 4, "full", "map", "set", prefixes, "11.0.0.0/8", "1")
	cmd := n.bpfnet("map", "import", prefixes, "-")
	cmd.Stdin = strings.NewReader("10.0.0.0/24 1\n11.0.0.0/8 1\n")
	runOf(cmd).check(t, "import into a full map", 8, "refused 1 of 1 changes: the map is full")
}

// TestSignalsAtAnyTime interrupts commands at moments spread over their run.
func TestSignalsAtAnyTime(t *testing.T) {
	input := prefixFile(t, 900)
	moments := 6
	if all() {
		moments = 40
	}
	for _, o := range operations(input) {
		t.Run(o.name, func(t *testing.T) {
			d := o.on(t)
			start := time.Now()
			d.must(t, d.words()...)
			length := time.Since(start)
			d.reset(t)
			for i := range moments {
				signal := []os.Signal{unix.SIGINT, unix.SIGTERM}[i%2]
				wait := length * time.Duration(i+1) / time.Duration(moments)
				what := fmt.Sprintf("%v after %v", signal, wait)
				r := signalled(t, d.bpfnet(d.words()...), signal, wait)
				if r.code != 0 && r.code != 130 && r.code != -1 {
					t.Errorf("%s: exit %d\n%s", what, r.code, r.stderr)
				}
				if d.name == "import" && r.code == 130 {
					r.code = 8 // what was written stays, and the message says how much
				}
				d.settled(t, what, r)
			}
		})
	}
}

// signalled runs a command and sends it a signal. What a signal ends before
// the command opens the kernel ends by the signal: code -1.
func signalled(t *testing.T, cmd *exec.Cmd, signal os.Signal, after time.Duration) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(after)
	_ = cmd.Process.Signal(signal)
	_ = cmd.Wait()
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// TestStreamsEndInOrder interrupts what runs until it is interrupted.
func TestStreamsEndInOrder(t *testing.T) {
	n := newNode(t)
	n.must(t, "load", "pod-traffic")
	n.must(t, "load", "../internal/datapath/testdata/events.o", "--name", "ev")
	n.must(t, "load", "blocklist")
	before := n.summary(t)
	for i, line := range []string{
		"map events ev/events", "map events ev/samples", "watch alerts",
		"watch pods --interval 10ms", "status --interval 10ms", "map watch " + prefixes + " --interval 10ms",
		"run xdp-counter --dev veth-b --mode generic --interval 10ms", "run port-filter --dev veth-a --interval 10ms",
	} {
		for _, wait := range []time.Duration{20, 60, 300} {
			signal := []os.Signal{unix.SIGINT, unix.SIGTERM}[i%2]
			r := signalled(t, n.bpfnet(strings.Fields(line)...), signal, wait*time.Millisecond)
			// 130 of run: it was interrupted before there was something to show.
			if r.code != 0 && r.code != -1 && !(r.code == 130 && strings.HasPrefix(line, "run ")) {
				t.Errorf("%s after %d ms: exit %d\n%s", line, wait, r.code, r.stderr)
			}
			if after := n.summary(t); after != before {
				t.Errorf("%s after %d ms: left %s", line, wait, after)
			}
		}
	}
}

// TestTargetsThatVanish takes interface and cgroup away between the look at them
// and the attachment.
func TestTargetsThatVanish(t *testing.T) {
	n := newNode(t)
	n.must(t, "load", "pod-traffic")
	n.must(t, "load", "xdp-counter")
	cgroup := testkit.Cgroup(t)
	device := func() { n.sh(t, "ip -n $HOST link del veth-q") }
	attachesTC := byLink
	if !hasFeature("tcx") {
		attachesTC = byFilter
	}
	for _, v := range []vanishing{
		{"attach tc pod-traffic --dev veth-q --direction both", attachesTC, device},
		{"attach xdp xdp-counter --dev veth-q --mode generic", byLink, device},
		{"attach cgroup pod-traffic --cgroup " + cgroup, byLink, func() { _ = os.Remove(cgroup) }},
	} {
		t.Run(strings.Fields(v.line)[1], func(t *testing.T) {
			n.sh(t, "ip -n $HOST link add veth-q type veth peer name veth-r && ip -n $HOST link set veth-q up")
			defer func() { _ = exec.Command("ip", "-n", n.host, "link", "del", "veth-q").Run() }()
			v.run(t, n)
		})
	}
}

// vanishing is a command that attaches, and what takes its target away.
type vanishing struct {
	line     string
	attaches way
	gone     func()
}

// way is how a command attaches: by a system call that strace shows like this.
type way struct {
	call string
	like *regexp.Regexp
}

var (
	byLink   = way{"bpf", regexp.MustCompile("BPF_LINK_CREATE")}
	byFilter = way{"sendto", regexp.MustCompile("nlmsg_type=(RTM_NEWTFILTER|0x2c)")} // a number without netlink_diag
)

func (v vanishing) run(t *testing.T, n node) {
	t.Helper()
	args := strings.Fields(v.line)
	detach := []string{"detach", args[1], args[2]}
	calls := n.callsUntilAttached(t, v.attaches, args)
	n.must(t, detach...)
	r := n.whileAttaching(t, v.attaches.call, calls, args, v.gone)
	if r.code != 3 && r.code != 0 {
		t.Errorf("exit %d\n%s", r.code, r.stderr)
	}
	if r.code != 0 && strings.Contains(n.summary(t), "@") {
		t.Errorf("left %s", n.summary(t))
	}
	if r.code != 0 && !strings.HasSuffix(r.stderr, ": its target went away while it was being attached\n") {
		t.Errorf("it says more or less than that its target went away: %s", r.stderr)
	}
	n.must(t, detach...)
}

// callsUntilAttached counts the calls before the last that attaches, of the thread
// that makes it. There what was attached before has to be undone.
func (n node) callsUntilAttached(t *testing.T, w way, args []string) int {
	t.Helper()
	cmd, log := n.withRule(t, w.call, "", args...)
	if r := runOf(cmd); r.code != 0 {
		t.Fatalf("%q: exit %d\n%s", args, r.code, r.stderr)
	}
	lines := straced(t, log)
	last := -1
	for i, line := range lines {
		if w.like.MatchString(line) && !strings.Contains(line, "= -1") {
			last = i
		}
	}
	if last < 0 {
		t.Fatalf("%q makes no %s in\n%s", args, w.like, strings.Join(lines, "\n"))
	}
	thread, _, _ := strings.Cut(lines[last], " ")
	before := slices.DeleteFunc(lines[:last], func(line string) bool { return !strings.HasPrefix(line, thread+" ") })
	return len(before)
}

// whileAttaching runs bpfnet, which waits before the call that attaches, and
// does something meanwhile.
func (n node) whileAttaching(t *testing.T, call string, calls int, args []string, do func()) result {
	t.Helper()
	cmd, log := n.withRule(t, call, fmt.Sprintf("delay_enter=2000000:when=%d", calls+1), args...)
	done := make(chan result)
	go func() { done <- runOf(cmd) }()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		text, _ := os.ReadFile(log)
		if strings.Count(string(text), "\n") >= calls {
			break
		}
	}
	time.Sleep(100 * time.Millisecond)
	do()
	return <-done
}

// TestReplacedPins puts an object of another type where bpfnet pinned one.
func TestReplacedPins(t *testing.T) {
	if _, err := exec.LookPath("bpftool"); err != nil {
		t.Skip("needs bpftool, which pins something else")
	}
	n := newNode(t)
	const elsewhere = "something else was put in its place"
	reset := func() {
		n.must(t, "unload", "--all", "--detach")
		n.must(t, "load", "xdp-counter")
		n.must(t, "attach", "xdp", "xdp-counter", "--dev", "veth-a", "--mode", "generic")
		n.must(t, "load", "pod-traffic")
	}
	for _, c := range []struct{ name, script string }{
		{"a program for a map", `rm maps/packets; bpftool prog pin pinned progs/xdp_counter maps/packets`},
		{"a directory for a map", `rm maps/packets; mkdir maps/packets`},
		{"a map for a program", `rm progs/xdp_counter; bpftool map pin pinned maps/packets progs/xdp_counter`},
		{"a directory for a program", `rm progs/xdp_counter; mkdir progs/xdp_counter`},
	} {
		reset()
		n.sh(t, "cd $BPFNET_BPFFS/xdp-counter; "+c.script)
		for _, line := range []string{"status", "prog list", "link list", "load xdp-counter"} {
			r := n.faulty(t, 4, elsewhere, strings.Fields(line)...)
			if !strings.Contains(r.stderr, "hint: bpfnet unload xdp-counter --detach") {
				t.Errorf("%s, %s: no hint in %s", c.name, line, r.stderr)
			}
		}
		if strings.HasSuffix(c.name, "for a map") {
			n.faulty(t, 2, "is not a map", "map", "dump", "xdp-counter/packets")
		}
		n.must(t, "status", "pod-traffic")
		n.must(t, "map", "dump", "xdp-counter/interfaces", "-o", "ndjson")
		n.must(t, "detach", "xdp", "xdp-counter")
		n.must(t, "unload", "xdp-counter")
	}
	for _, c := range []struct{ name, script string }{
		{"a map for a link", `l=$(echo links/*); rm $l; bpftool map pin pinned maps/packets $l`},
		{"a directory for a link", `l=$(echo links/*); rm $l; mkdir -p $l/sub`},
	} {
		for _, line := range []string{"detach --defunct", "unload xdp-counter", "load xdp-counter --replace --prog xdp_counter"} {
			reset()
			n.sh(t, "cd $BPFNET_BPFFS/xdp-counter; "+c.script)
			if got := n.summary(t); !strings.Contains(got, "xdp_counter@xdp!") {
				t.Errorf("%s: %s", c.name, got)
			}
			n.must(t, strings.Fields(line)...)
		}
	}
	n.must(t, "unload", "--all", "--detach")
}

// inMounts runs a script in which bpfnet works on other mounts than the rest of
// the machine.
func (n node) inMounts(t *testing.T, script string) result {
	t.Helper()
	cmd := exec.Command("unshare", "-m", "bash", "-euc", "bpfnet() { "+binary+" --netns $HOST \"$@\"; }; "+script)
	cmd.Env = append(os.Environ(), n.env()...)
	return runOf(cmd)
}

// TestReadOnlyBPFFS works on a bpffs that can't be changed.
func TestReadOnlyBPFFS(t *testing.T) {
	const (
		mount = "mount --bind /sys/fs/bpf /sys/fs/bpf; mount -o remount,ro,bind /sys/fs/bpf; "
		fresh = `umount -l /sys/fs/bpf; mount -t bpf bpf /sys/fs/bpf; bpfnet load xdp-counter >&2; bpfnet attach xdp xdp-counter --dev veth-b --mode generic >&2
mount -o remount,ro /sys/fs/bpf; `
	)
	n := newNode(t)
	n.must(t, "load", "xdp-counter")
	n.must(t, "load", "pod-traffic")
	n.must(t, "attach", "xdp", "xdp-counter", "--dev", "veth-a", "--mode", "generic")
	n.must(t, "attach", "tc", "pod-traffic", "--dev", "veth-a", "--direction", "both")
	before := n.summary(t)
	for _, line := range []string{"status", "prog list", "link list", "map list", "map dump xdp-counter/packets", "watch pods --once", "load port-filter --dry-run"} {
		n.inMounts(t, mount+"bpfnet "+line).check(t, line, 0, "")
	}
	writers := []string{"load port-filter", "load xdp-counter --replace --prog xdp_counter", "detach xdp xdp-counter", "unload xdp-counter --detach", "attach xdp xdp-counter --dev veth-b --mode generic"}
	for _, line := range writers {
		r := n.inMounts(t, mount+"bpfnet "+line)
		r.check(t, line, 5, "read-only file system\nhint: mount -o remount,rw /sys/fs/bpf")
	}
	if after := n.summary(t); after != before {
		t.Errorf("%s, want %s", after, before)
	}
	n.must(t, "unload", "--all", "--detach")
	// Where the file system itself is read-only, not the mount, the kernel opens
	// no programs and links.
	for _, line := range slices.Concat(writers, []string{"status", "prog list", "link list", "map clear xdp-counter/packets"}) {
		n.inMounts(t, fresh+"bpfnet "+line).check(t, line, 5, "read-only file system\nhint: mount -o remount,rw /sys/fs/bpf")
	}
	for _, line := range []string{"map list", "map dump xdp-counter/packets", "load port-filter --dry-run"} {
		n.inMounts(t, fresh+"bpfnet "+line).check(t, line, 0, "")
	}
}

// TestMissingBPFFS works without bpffs, below another file system, and where
// something else has the place of the root.
func TestMissingBPFFS(t *testing.T) {
	n := newNode(t)
	n.must(t, "load", "xdp-counter")
	before := n.summary(t)
	lines := []string{"status", "prog list", "link list", "load port-filter", "detach xdp xdp-counter", "unload xdp-counter", "map dump xdp-counter/packets", "ports list"}
	for _, mount := range []string{"umount -l /sys/fs/bpf; ", "mount -t tmpfs none /sys/fs/bpf; "} {
		for _, line := range lines {
			n.inMounts(t, mount+"bpfnet "+line).check(t, mount+line, 1, "is not on a mounted bpffs\nhint: mount -t bpf bpf /sys/fs/bpf   (or add --mount to the command)")
		}
	}
	n.inMounts(t, "umount -l /sys/fs/bpf; bpfnet load port-filter --mount; bpfnet unload port-filter").check(t, "--mount", 0, "")
	n.inMounts(t, "mount -t bpf none /sys/fs/bpf; bpfnet status").check(t, "a second bpffs", 0, "nothing is loaded")
	if after := n.summary(t); after != before {
		t.Errorf("%s, want %s", after, before)
	}
	n.must(t, "unload", "--all")
	n.sh(t, "mkdir $BPFNET_BPFFS; ln -s text $BPFNET_BPFFS/text")
	n.must(t, "load", "xdp-counter")
	n.must(t, "unload", "--all")
	n.sh(t, "rm $BPFNET_BPFFS/text; rmdir $BPFNET_BPFFS") // still there: bpfnet didn't make it
	n.sh(t, "ln -s /nowhere $BPFNET_BPFFS")
	defer os.Remove(n.root)
	n.faulty(t, 4, "isn't a directory", "load", "xdp-counter")
	n.faulty(t, 0, "nothing is loaded", "status")
}

// TestFewFiles runs with a low limit of open files.
func TestFewFiles(t *testing.T) {
	n := newNode(t)
	for limit := 3; limit < 40; limit++ {
		for _, line := range []string{"load pod-traffic", "status", "attach tc pod-traffic --dev veth-a --direction both", "load pod-traffic --replace --set match_prefixes=1 --reuse-maps", "unload --all --detach"} {
			script := fmt.Sprintf(`ulimit -n %d; exec "$0" "$@"`, limit)
			cmd := exec.Command("bash", append([]string{"-c", script, binary, "--netns", n.host}, strings.Fields(line)...)...)
			cmd.Env = append(os.Environ(), n.env()...)
			r := runOf(cmd)
			known := r.code == 0 || r.code == 1 && strings.Contains(r.stderr, "too many open files") || r.code == 3 && strings.HasPrefix(line, "attach")
			if !known && limit > 3 { // with 3, not even a shared library can be opened
				t.Errorf("%s with %d files: exit %d\n%s", line, limit, r.code, r.stderr)
			}
			n.nothingHalfMade(t)
		}
	}
	n.must(t, "unload", "--all", "--detach")
}

// TestLowMemlock runs with little locked memory and without the capability to
// raise that: kernels before 5.11 charge maps and programs to it.
func TestLowMemlock(t *testing.T) {
	n := newNode(t)
	low := func(args ...string) result {
		set := "-all,+bpf,+net_admin,+perfmon"
		line := append([]string{"--net=/run/netns/" + n.host, "--", "bash", "-c", `ulimit -l 64; exec "$0" "$@"`, "setpriv", "--bounding-set", set, "--inh-caps", set, binary}, args...)
		cmd := exec.Command("nsenter", line...)
		cmd.Env = append(os.Environ(), n.env()...)
		return runOf(cmd)
	}
	r := low("load", "pod-traffic")
	if r.code == 0 {
		t.Skip("this kernel has no limit of locked memory for BPF: it charges the memory cgroup")
	}
	r.check(t, "load", 5, "RLIMIT_MEMLOCK is 64 KiB")
	if !strings.Contains(r.stderr, "hint: ulimit -l unlimited") {
		t.Errorf("no hint in %s", r.stderr)
	}
	n.nothingHalfMade(t)
}

// TestEngineThatTalksNonsense has engines that say what they aren't asked: each costs
// one line, and nothing of the result.
func TestEngineThatTalksNonsense(t *testing.T) {
	n := newNode(t)
	id := containerID(t)
	container(t, n.podA, "docker/"+id, "sleep", "600")
	ping := "\x00\x00\x08\x06\x00\x00\x00\x00\x00" + "01234567" // a frame of HTTP/2 that may not be the first
	for _, nonsense := range []string{ping, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n[1]HTTP/1.1 200 OK\r\n", "\x00\xff\r\n"} {
		l, err := net.Listen("unix", filepath.Join(t.TempDir(), "socket"))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = conn.Write([]byte(nonsense))
				defer conn.Close()
			}
		}()
		socket := l.Addr().String()
		r := runOf(n.bpfnet("endpoint", "show", "container:"+id, "-o", "json", "--cri-socket", socket, "--docker-socket", socket))
		if r.code != 0 || strings.Count(r.stderr, "\n") != 2 || strings.Count(r.stderr, "note: the engine at "+socket+" can't be asked for names: ") != 2 {
			t.Errorf("%q: exit %d\n%s", nonsense, r.code, r.stderr)
		}
		if got := jq(t, ".[0].containers[0].id", r.stdout); got != id {
			t.Errorf("%q: the container is %s", nonsense, got)
		}
	}
}
