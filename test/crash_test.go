package test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bpfnet/internal/testkit"
)

// crash is a command that is killed after each of its system calls that change
// something. $CGROUP, $OBJECTS, $PIN and $INPUT in its words are a cgroup, the
// folder of test objects, a path in bpffs and a file with the input.
type crash struct {
	name    string
	prepare [][]string
	halfway []string // a call, and a command of the preparation that is killed after it
	command []string
	input   string   // content of $INPUT
	compare []string // a further command whose output is part of the state
	keeps   bool     // the command must not change verdicts
	needs   string   // a feature, as in "bpfnet doctor", of what is attached through tracefs
}

// shortPoints is how many kills of a command the short form tries.
const shortPoints = 4

// everyPoint asks for the long form.
var everyPoint = os.Getenv("BPFNET_TEST_ALL") != ""

// Without TCX the kernel needs a qdisc that holds filters. docs/known-limits.md
// says what a kill can leave of it, and that packets are lost as it comes and
// goes.
var (
	newQdisc  = netlinkCall(unix.RTM_NEWQDISC)
	delQdisc  = netlinkCall(unix.RTM_DELQDISC)
	delFilter = netlinkCall(unix.RTM_DELTFILTER)
)

// points chooses after which calls to kill, counted from 1: all, or in the short
// form some of those whose effect stays, the last one among them.
func points(calls []call) []int {
	var lasting, all []int
	for i, c := range calls {
		all = append(all, i+1)
		if c.lasting {
			lasting = append(lasting, i+1)
		}
	}
	if everyPoint || len(lasting) <= shortPoints {
		if everyPoint {
			return all
		}
		return lasting
	}
	var some []int
	for i := 1; i <= shortPoints; i++ {
		some = append(some, lasting[i*len(lasting)/shortPoints-1])
	}
	return some
}

// run tries one command. What an undisturbed run makes of a prepared node, and
// of the packets' verdicts, is what a killed one has to lead to.
func (c crash) run(t *testing.T) {
	c.needed(t)
	h := newHarness(t, c)
	h.prepare(t)
	h.before = h.traffic.verdicts(t)
	whole := trace(t, h.command(), never)
	if whole.code != 0 {
		t.Fatalf("%q: exit %d: %s", c.command, whole.code, whole.output)
	}
	h.after, h.want = h.traffic.verdicts(t), h.state(t)
	if c.keeps && h.before != h.after {
		t.Errorf("verdicts change from %v to %v", h.before, h.after)
	}
	h.repeat(t, false)
	h.clean(t, whole.objects)
	chosen := points(whole.calls)
	if len(chosen) == 0 {
		t.Fatalf("%q changes nothing", c.command)
	}
	for i, point := range chosen {
		last := whole.calls[point-1].name
		t.Run(fmt.Sprintf("%02d_%s", point, last), func(t *testing.T) {
			h.qdisc = last == newQdisc || last == delFilter
			made := h.kill(t, point)
			h.repeat(t, true)
			h.repeat(t, false)
			h.converged(t, made)
			h.clean(t, made)
			if everyPoint || i%2 == 0 {
				h.clean(t, h.kill(t, point)) // removing is a next command, too
			}
		})
	}
	t.Logf("killed after %d of %d calls; verdicts from %v to %v", len(chosen), len(whole.calls), h.before, h.after)
}

// needed skips a command for which kernel or machine lack something.
func (c crash) needed(t *testing.T) {
	t.Helper()
	if c.needs == "" {
		return
	}
	testkit.NeedsKernel(t)
	if !hasFeature(c.needs) {
		t.Skipf("this kernel has no %s", c.needs)
	}
	if !testkit.HasMember("bpf_attr", "link_create.perf_event") {
		t.Skip("this kernel has no links of perf events, which can be pinned")
	}
	if _, err := os.Stat("/sys/kernel/tracing/events"); err != nil {
		t.Skip("needs tracefs: mount -t tracefs tracefs /sys/kernel/tracing")
	}
}

// harness is a node on which a command is killed.
type harness struct {
	crash
	node
	traffic       traffic
	variables     map[string]string
	before, after verdicts
	want          string // state
	qdisc         bool   // one may be left
}

func newHarness(t *testing.T, c crash) *harness {
	n := newNode(t)
	objects, err := filepath.Abs("../internal/datapath/testdata")
	if err != nil {
		t.Fatal(err)
	}
	h := &harness{crash: c, node: n, traffic: newTraffic(t, n), variables: map[string]string{
		"CGROUP": testkit.Cgroup(t), "OBJECTS": objects, "PIN": n.root + "-kept", "INPUT": filepath.Join(t.TempDir(), "input"),
	}}
	if err := os.WriteFile(h.variables["INPUT"], []byte(c.input), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(h.variables["PIN"]) })
	return h
}

func (h *harness) expand(words []string) []string {
	var expanded []string
	for _, word := range words {
		expanded = append(expanded, os.Expand(word, func(name string) string { return h.variables[name] }))
	}
	return expanded
}

func (h *harness) command() *exec.Cmd { return h.bpfnet(h.expand(h.crash.command)...) }

// prepare makes what is there before the command, from nothing.
func (h *harness) prepare(t *testing.T) {
	t.Helper()
	h.removeAll(t)
	for _, words := range h.crash.prepare {
		h.must(t, h.expand(words)...)
	}
	if len(h.halfway) == 0 {
		return
	}
	if left := trace(t, h.bpfnet(h.expand(h.halfway[1:])...), afterAny(h.halfway[0])); !left.killed {
		t.Fatalf("%q wasn't killed: %s", h.halfway, left.output)
	}
}

func (h *harness) removeAll(t *testing.T) {
	t.Helper()
	h.must(t, "unload", "--all", "--detach")
	if h.hasLists() {
		h.must(t, "blocklist", "clear")
	}
	if err := os.Remove(h.variables["PIN"]); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
}

func (h *harness) hasLists() bool {
	_, err := os.Stat(filepath.Join(h.root, "@shared:blocklist"))
	return err == nil
}

// kill runs the command on a prepared node until the given call, and checks what
// is left: readers work, and packets meet the old policy or the new one.
func (h *harness) kill(t *testing.T, point int) []object {
	t.Helper()
	h.prepare(t)
	stop := h.traffic.flood(t)
	killed := trace(t, h.command(), after(point))
	stop(h.before, h.after, slices.ContainsFunc(killed.calls, func(c call) bool { return c.name == newQdisc || c.name == delQdisc }))
	if !killed.killed {
		t.Fatalf("ended after %d calls: exit %d: %s", len(killed.calls), killed.code, killed.output)
	}
	h.wholeStatus(t)
	if got := h.traffic.verdicts(t); got != h.before && got != h.after {
		t.Errorf("verdicts %v, want %v or %v", got, h.before, h.after)
	}
	return killed.objects
}

// repeat runs the command again. It must succeed; unless anything may have been
// left to do, it must have nothing to change.
func (h *harness) repeat(t *testing.T, unfinished bool) {
	t.Helper()
	var doc struct{ Changed *bool }
	out := h.must(t, append(h.expand(h.crash.command), "-o", "json")...)
	if err := json.Unmarshal([]byte(out), &doc); err != nil || doc.Changed == nil {
		t.Fatalf("%v in %s", err, out)
	}
	if *doc.Changed && !unfinished {
		t.Errorf("%q changes something each time: %s", h.crash.command, out)
	}
}

// converged checks that the state is that of an undisturbed run, and that of
// what the killed run made only what is part of it is left in the kernel.
func (h *harness) converged(t *testing.T, made []object) {
	t.Helper()
	if got := h.state(t); got != h.want {
		t.Errorf("state, - wanted, + there:\n%s%s", without("- ", h.want, got), without("+ ", got, h.want))
	}
	if got := h.traffic.verdicts(t); got != h.after {
		t.Errorf("verdicts %v, want %v", got, h.after)
	}
	known := h.wholeStatus(t)
	h.addPinned(t, known)
	gone(t, slices.DeleteFunc(slices.Clone(made), func(o object) bool { return known[o] }))
}

// addPinned adds the maps of lists, which belong to no instance.
func (h *harness) addPinned(t *testing.T, known map[object]bool) {
	t.Helper()
	if !h.hasLists() {
		return
	}
	for line := range strings.Lines(h.sh(t, "for pin in $BPFNET_BPFFS/@shared:blocklist/*; do bpftool -j map show pinned $pin | jq .id; done")) {
		id, err := strconv.ParseUint(strings.TrimSpace(line), 10, 32)
		if err != nil {
			t.Fatal(err)
		}
		known[object{"map_id", uint32(id)}] = true
	}
}

// without lists the lines of one text that another doesn't have.
func without(mark, text, other string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if !strings.Contains(other, line) {
			b.WriteString(mark + line)
		}
	}
	return b.String()
}

// clean removes everything, and checks that nothing is left.
func (h *harness) clean(t *testing.T, made []object) {
	t.Helper()
	h.removeAll(t)
	if tree := h.tree(t); tree != "" {
		t.Errorf("left in bpffs:\n%s", tree)
	}
	_ = os.Remove(h.root) // if it was made, but not marked as made
	if qdiscs := h.sh(t, "tc -n $HOST qdisc show"); strings.Contains(qdiscs, "clsact") {
		if !h.qdisc {
			t.Errorf("left on devices:\n%s", qdiscs)
		}
		h.sh(t, "for dev in veth-a veth-b; do tc -n $HOST qdisc del dev $dev clsact || true; done")
	}
	gone(t, made)
}

// gone waits until the kernel has freed objects, which it does some time after
// the last use.
func gone(t *testing.T, objects []object) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		objects = slices.DeleteFunc(slices.Clone(objects), func(o object) bool { return !o.exists() })
		if len(objects) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("leaked: %v", objects)
		}
	}
}

// wholeStatus reads the status, and checks that it lists nothing that is only
// half there. It returns the objects that are listed.
func (h *harness) wholeStatus(t *testing.T) map[object]bool {
	t.Helper()
	instances := h.status(t)
	known := map[object]bool{}
	for _, i := range instances {
		if i.Source == "" || len(i.Programs) == 0 {
			t.Errorf("an instance is not whole: %+v", i)
		}
		for _, p := range i.Programs {
			known[object{"prog_id", p.ID}] = true
		}
		for _, m := range i.Maps {
			known[object{"map_id", m.ID}] = true
		}
		for _, a := range i.Attachments {
			known[object{"link_id", a.LinkID}], known[object{"prog_id", a.ProgID}] = true, true
			if a.DevName == nil && a.Cgroup == nil && a.Target == nil {
				t.Errorf("an attachment has no target: %+v", a)
			}
		}
	}
	return known
}

// instance is one of the document bpfnet.status/v1, as far as tests read it.
type instance struct {
	Name        string
	Source      string
	Programs    []struct{ ID uint32 }
	Maps        []struct{ ID uint32 }
	Attachments []struct {
		Program, Hook           string
		DevName, Cgroup, Target *string
		LinkID                  uint32 `json:"link_id"`
		ProgID                  uint32 `json:"prog_id"`
		Defunct                 bool
	}
}

func (n node) status(t *testing.T) []instance {
	t.Helper()
	var doc struct{ Instances []instance }
	out := n.must(t, "status", "-o", "json")
	if err := json.Unmarshal([]byte(out), &doc); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	return doc.Instances
}

// summary describes what is loaded and attached, without numbers that differ
// between runs. An attachment that runs a program which isn't the loaded one is
// marked.
func (n node) summary(t *testing.T) string {
	t.Helper()
	var text strings.Builder
	for _, i := range n.status(t) {
		fmt.Fprintf(&text, "%s(%d programs, %d maps:", i.Name, len(i.Programs), len(i.Maps))
		for _, a := range i.Attachments {
			fmt.Fprintf(&text, " %s@%s", a.Program, a.Hook)
			current := slices.ContainsFunc(i.Programs, func(p struct{ ID uint32 }) bool { return p.ID == a.ProgID })
			if !current || a.Defunct {
				text.WriteString("!")
			}
		}
		text.WriteString(") ")
	}
	return text.String()
}

// state describes everything that a command leaves, without what differs
// between runs.
func (h *harness) state(t *testing.T) string {
	t.Helper()
	text := h.tree(t) + h.summary(t) + "\n" + h.normal(t, "status")
	if len(h.compare) > 0 {
		text += h.normal(t, h.compare...)
	}
	return text
}

// listNumber is what a list has any of.
var listNumber = regexp.MustCompile(`(lists[46]):\d+`)

// tree lists the bpffs directory, with the texts of symbolic links.
func (h *harness) tree(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(h.root, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || path == h.root || entry.Name() == "@made" {
			return err
		}
		text, _ := os.Readlink(path)
		fmt.Fprintf(&b, "%s %s %s\n", entry.Type(), listNumber.ReplaceAllString(path, "$1:N"), text)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(h.variables["PIN"]); err == nil {
		fmt.Fprintln(&b, h.variables["PIN"])
	}
	return b.String()
}

// normal returns what a command prints as JSON, one line for each part, without
// what differs between runs.
func (h *harness) normal(t *testing.T, args ...string) string {
	t.Helper()
	var doc any
	out := h.must(t, append(args, "-o", "json")...)
	if err := json.Unmarshal([]byte(out), &doc); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	text, err := json.MarshalIndent(normal(doc), "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// differing are the members of documents that differ between runs.
var differing = []string{"time", "id", "prog_id", "link_id", "map_ids", "btf_id", "loaded_at", "run_count", "run_time_ns", "packets", "bytes", "entries", "memory_bytes"}

func normal(value any) any {
	switch value := value.(type) {
	case map[string]any:
		for name, member := range value {
			value[name] = normal(member)
			if slices.Contains(differing, name) {
				delete(value, name)
			}
		}
	case []any:
		for i := range value {
			value[i] = normal(value[i])
		}
		slices.SortFunc(value, func(a, b any) int { // dumps of hashes have no order
			return strings.Compare(fmt.Sprint(a), fmt.Sprint(b))
		})
	}
	return value
}
