package testkit

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bpfnet/pinned"
)

// Other packages' tests run at the same time in the same kernel, so what is new
// in it needn't be ours. A test's own are the objects that it pinned below its
// root or has on the hooks of its namespaces and cgroups as these are taken away,
// the descriptors and children of this process, and whatever bears its names.

// patience is how long the kernel may take to let go of what nobody holds.
var patience = 20 * time.Second

const poll = 10 * time.Millisecond

// ledger is what a test has to have given back when it ends.
type ledger struct {
	test    string
	open    map[string]int  // descriptors of this process as the test began
	shared  bool            // other tests ran meanwhile: the process isn't ours alone
	objects map[object]bool // BPF objects that the test made
	names   []string        // of roots, namespaces, cgroups
}

var (
	ledgersMu sync.Mutex
	ledgers   = map[testing.TB]*ledger{}
)

// watch makes the test fail if it ends with anything of its own left. What the
// test registered with Cleanup before isn't done yet when that is checked.
func watch(t testing.TB) *ledger {
	ledgersMu.Lock()
	defer ledgersMu.Unlock()
	if l := ledgers[t]; l != nil {
		return l
	}
	l := &ledger{test: t.Name(), open: descriptors(), objects: map[object]bool{}}
	for _, other := range ledgers {
		if !related(l.test, other.test) {
			l.shared, other.shared = true, true
		}
	}
	ledgers[t] = l
	t.Cleanup(func() {
		if left := settle(l.left); len(left) > 0 {
			t.Errorf("the test leaves behind:\n%s", strings.Join(left, "\n"))
		}
		ledgersMu.Lock()
		defer ledgersMu.Unlock()
		delete(ledgers, t)
	})
	return l
}

// related says whether one test is a part of the other.
func related(a, b string) bool {
	return strings.HasPrefix(a+"/", b+"/") || strings.HasPrefix(b+"/", a+"/")
}

// add makes a name the test's: nothing that bears it may be left.
func (l *ledger) add(name string) { l.names = append(l.names, name) }

// made makes BPF objects the test's.
func (l *ledger) made(objects []object) {
	for _, o := range objects {
		l.objects[o] = true
	}
}

// left describes what the test hasn't given back.
func (l *ledger) left() []string {
	var left []string
	for _, o := range slices.SortedFunc(maps.Keys(l.objects), object.compare) {
		if o.exists() {
			left = append(left, o.String())
		}
	}
	for _, name := range l.names {
		left = append(left, bearing(name)...)
	}
	ledgersMu.Lock()
	defer ledgersMu.Unlock()
	if !l.shared {
		left = append(left, more(descriptors(), l.open)...)
	}
	return left
}

// settle asks until nothing is left, or patience is at its end.
func settle(left func() []string) []string {
	for end := time.Now().Add(patience); ; time.Sleep(poll) {
		if found := left(); len(found) == 0 || time.Now().After(end) {
			return found
		}
	}
}

// bearing describes what has a name in it: pins, namespaces, cgroups of all
// hierarchies, mounts, processes with it in their environment or arguments.
func bearing(name string) []string {
	left, hierarchies := mounts(name)
	for _, dir := range append(hierarchies, pinned.MountPoint, namespaces) {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			if contains(e.Name(), name) {
				left = append(left, filepath.Join(dir, e.Name()))
			}
		}
	}
	processes, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range processes {
		if filepath.Base(dir) == fmt.Sprint(os.Getpid()) {
			continue
		}
		command, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		environment, _ := os.ReadFile(filepath.Join(dir, "environ"))
		if contains(string(command), name) || contains(string(environment), name) {
			left = append(left, fmt.Sprintf("process %s: %q", filepath.Base(dir), command))
		}
	}
	return left
}

// mounts lists the mount points that have a name in them, and those of cgroups, of
// version 1, too.
func mounts(name string) (bearing, hierarchies []string) {
	text, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(text)) {
		mount, filesystem, _ := strings.Cut(line, " - ")
		point := strings.Fields(mount)[4]
		if contains(point, name) && filepath.Dir(point) != namespaces {
			bearing = append(bearing, "mount "+point)
		}
		if strings.HasPrefix(filesystem, "cgroup") {
			hierarchies = append(hierarchies, point)
		}
	}
	return bearing, hierarchies
}

// contains says whether text has name in it and not as the beginning of another
// one: "bn7-1" isn't in "bn7-12".
func contains(text, name string) bool {
	for {
		_, after, found := strings.Cut(text, name)
		if !found {
			return false
		}
		if digit := name[len(name)-1]; after == "" || digit < '0' || digit > '9' || after[0] < '0' || after[0] > '9' {
			return true
		}
		text = after
	}
}

// descriptors counts what this process has open, BPF objects by their ids. What
// the Go runtime keeps for itself isn't counted.
func descriptors() map[string]int {
	open := map[string]int{}
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		target, err := os.Readlink(filepath.Join("/proc/self/fd", e.Name()))
		if err != nil || strings.HasPrefix(target, "anon_inode:[event") || strings.HasPrefix(target, "/proc/") {
			continue // closed since, or epoll and its eventfd
		}
		if strings.HasPrefix(target, "anon_inode:bpf") {
			target += fmt.Sprint(" ", describe(e.Name()))
		}
		open[target]++
	}
	return open
}

// more describes what is open now and wasn't before.
func more(now, before map[string]int) []string {
	var left []string
	for _, target := range slices.Sorted(maps.Keys(now)) {
		if n := now[target] - before[target]; n > 0 {
			left = append(left, fmt.Sprintf("%d descriptors of %s", n, target))
		}
	}
	return left
}

// noteTree makes what is pinned below a directory the test's.
func (l *ledger) noteTree(dir string) {
	_ = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			l.made(pin(path))
		}
		return nil
	})
}

// Run runs the tests of a package, for its TestMain, with the memlock limit
// lifted, and returns the exit code: not 0 either if anything of them is left.
func Run(m *testing.M) int {
	liftMemlock()
	own := fmt.Sprintf("bn%d-", os.Getpid())
	open, before := descriptors(), hooked("")
	code := m.Run()
	left := settle(func() []string {
		left := append(more(descriptors(), open), bearing(own)...)
		for _, what := range hooked("") {
			if !slices.Contains(before, what) {
				left = append(left, what)
			}
		}
		return append(left, children()...)
	})
	if len(left) == 0 {
		return code
	}
	fmt.Fprintf(os.Stderr, "the tests leave behind:\n%s\n", strings.Join(left, "\n"))
	return max(code, 1)
}

// children lists the processes that this one started and that haven't ended.
func children() []string {
	var left []string
	processes, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range processes {
		stat, _ := os.ReadFile(filepath.Join(dir, "stat"))
		// "812 (name) S 1 …": the name may have blanks and brackets in it.
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		if len(fields) > 1 && fields[1] == fmt.Sprint(os.Getpid()) {
			left = append(left, fmt.Sprintf("process %s, state %s", filepath.Base(dir), fields[0]))
		}
	}
	return left
}

// liftMemlock is for kernels before 5.11, which charge maps to the memlock limit.
// Others need nothing, and a refusal shows when a map is made.
func liftMemlock() {
	_ = unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY})
}
