package test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"bpfnet/internal/testkit"
)

// crowdVariable is how long TestCrowd goes on, "60s"; shortCrowd if it isn't set.
const (
	crowdVariable = "BPFNET_TEST_CROWD"
	shortCrowd    = 8 * time.Second
)

// raceExit is what a bpfnet that was built with -race ends with after a data
// race.
const raceExit = 66

// Exit codes of commands while others change the same things.
var (
	works     = []int{0}
	contended = []int{0, 3, 4, 9} // not found, conflict, locked
)

// crowd is 20 users of one node who work at the same time.
type crowd struct {
	node
	*testing.T
	binary, cgroup string

	mu      sync.Mutex
	runs    map[string]int  // by command and exit code
	lines   map[string]bool // that were run, without flags
	slowest time.Duration
}

// TestCrowd lets 20 writers and readers run every command at the same time. No
// update is lost, no read is torn, no command waits longer than it may or ends
// in a state that isn't defined, and in the end nothing is left.
func TestCrowd(t *testing.T) {
	length := shortCrowd
	if text := os.Getenv(crowdVariable); text != "" {
		var err error
		if length, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	}
	c := &crowd{node: newNode(t), T: t, binary: crowdBinary(t), cgroup: testkit.Cgroup(t), runs: map[string]int{}, lines: map[string]bool{}}
	for _, line := range []string{
		"load ../internal/datapath/testdata/limits.o --name store --max-entries allow=8192", "load port-filter", "load pod-traffic --name pt", "load blocklist",
		"load ../internal/datapath/testdata/several.o --name several --prog sockets --prog switches",
		"attach tc port-filter --dev veth-b --direction egress", "load peers", "load dns", "load drops", "load flows",
	} {
		c.do(works, strings.Fields(line)...)
	}
	c.work(length)
	c.do(works, "unload", "--all", "--detach")
	c.do(works, "blocklist", "clear")
	c.didEverything()
	testkit.Unhooked(t, "/run/netns/"+c.host)
	if _, err := os.Stat(c.root); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is left: %v", c.root, err)
	}
	t.Logf("the slowest of the commands took %s; by exit code: %v", c.slowest.Round(time.Millisecond), c.runs)
}

// didEverything fails for each command of bpfnet that nobody ran.
func (c *crowd) didEverything() {
	for _, command := range c.commands() {
		if !slices.ContainsFunc(slices.Collect(maps.Keys(c.lines)), func(line string) bool {
			return strings.HasPrefix(line+" ", command+" ")
		}) {
			c.Errorf("nobody ran %q", command)
		}
	}
}

// commands lists the commands that have none below them, as "map get", by what
// the help of each says.
func (n node) commands(above ...string) (leaves []string) {
	help, err := n.bpfnet(append(above, "--help")...).Output()
	_, list, found := strings.Cut(string(help), "\nCOMMANDS:\n")
	if err != nil || !found {
		return []string{strings.Join(above, " ")}
	}
	list, _, _ = strings.Cut(list, "\n\n")
	for line := range strings.Lines(list) {
		word, _, _ := strings.Cut(strings.TrimSpace(line), " ")
		leaves = append(leaves, n.commands(append(slices.Clone(above), strings.TrimSuffix(word, ","))...)...)
	}
	return leaves
}

// crowdBinary is a bpfnet that looks for data races if the tests do.
func crowdBinary(t *testing.T) string {
	t.Helper()
	if !raceDetector || os.Getenv("BPFNET_BINARY") != "" {
		return binary
	}
	path := filepath.Join(t.TempDir(), "bpfnet")
	if out, err := exec.Command("go", "build", "-race", "-o", path, "bpfnet").CombinedOutput(); err != nil {
		t.Fatalf("build bpfnet: %v\n%s", err, out)
	}
	return path
}

// turn is what a user does again and again, at least often enough to have run
// each of the commands.
type turn struct {
	times int
	do    func(i int)
}

// work lets everybody take turns until the time is over.
func (c *crowd) work(length time.Duration) {
	var turns []turn
	for k := range 3 {
		turns = append(turns, turn{1, func(i int) { c.ownsKeys(k, i) }}, turn{2, func(i int) { c.changesPolicy(k, i) }}, turn{4, func(i int) { c.managesInstance(k, i) }})
	}
	for _, do := range []func(i int){c.racesForKeys, c.imports, c.clears, c.queues, c.makesMaps, c.attachesToDevice, c.attachesToCgroup, c.attachesToTrace, c.setsDefault, c.blocks} {
		turns = append(turns, turn{1, do})
	}
	for k := range 2 {
		turns = append(turns, turn{len(readers)/2 + 1, func(i int) { c.do(works, strings.Fields(readers[(2*i+k)%len(readers)])...) }})
	}
	end := time.Now().Add(length)
	var all sync.WaitGroup
	for _, turn := range turns {
		all.Go(func() {
			for i := 0; (i < turn.times || time.Now().Before(end)) && !c.Failed(); i++ {
				turn.do(i)
			}
		})
	}
	all.Wait()
}

// do runs a command, which has to end in one of the exit codes and in time.
func (c *crowd) do(exits []int, args ...string) (stdout string, exit int) {
	return c.within(nil, exits, args...)
}

// within runs a command by another one, as timeout(1).
func (c *crowd) within(by []string, exits []int, args ...string) (stdout string, exit int) {
	// What a command may wait for the lock, and what a slow machine takes for 20.
	const lockTimeout, margin = time.Minute, 2 * time.Minute
	ctx, cancel := context.WithTimeout(context.Background(), lockTimeout+margin)
	defer cancel()
	line := slices.Concat(by, []string{c.binary, "--netns", c.host, "--lock-timeout", lockTimeout.String()}, args)
	cmd := exec.CommandContext(ctx, line[0], line[1:]...)
	cmd.Env = append(append(os.Environ(), c.env()...), fmt.Sprintf("GORACE=exitcode=%d", raceExit))
	var out, messages bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &messages
	began := time.Now()
	err := cmd.Run()
	took := time.Since(began)
	exit = cmd.ProcessState.ExitCode()
	if ctx.Err() != nil {
		c.Errorf("%q hangs", args)
	} else if !slices.Contains(exits, exit) {
		c.Errorf("%q: %v\n%s", args, err, messages.String())
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.slowest = max(c.slowest, took)
	c.runs[fmt.Sprintf("%s %d", args[0], exit)]++
	words := slices.DeleteFunc(slices.Clone(args), func(arg string) bool { return strings.HasPrefix(arg, "-") })
	c.lines[strings.Join(words[:min(2, len(words))], " ")] = true
	return out.String(), exit
}

// decode runs a command and reads what it prints.
func (c *crowd) decode(doc any, args ...string) {
	out, exit := c.do(works, append(args, "-o", "json")...)
	if err := json.Unmarshal([]byte(out), doc); err != nil && exit == 0 {
		c.Errorf("%q prints %q: %v", args, out, err)
	}
}

// value is what a key of the map store/allow has.
func (c *crowd) value(key string) int {
	var entry struct{ Value int }
	c.decode(&entry, "map", "get", "store/allow", key)
	return entry.Value
}

// ownsKeys writes keys that nobody else does, and finds what it wrote.
func (c *crowd) ownsKeys(k, i int) {
	key := fmt.Sprintf("10.%d.0.%d", k, i%100)
	for value := 1; value <= 2; value++ {
		c.do(works, "map", "set", "store/allow", key, fmt.Sprint(value))
		if got := c.value(key); got != value {
			c.Errorf("%s is %d, was set to %d", key, got, value)
		}
	}
	if i%2 == 0 {
		c.do(works, "map", "delete", "store/allow", key)
		c.do([]int{3}, "map", "get", "store/allow", key)
		c.do([]int{3}, "map", "set", "store/allow", key, "3", "--if-present")
	}
}

// racesForKeys lets three add the same key, each with a value of its own: one
// does, the others are told.
func (c *crowd) racesForKeys(i int) {
	key := fmt.Sprintf("10.200.%d.%d", i/250, i%250)
	var exits [3]int
	var all sync.WaitGroup
	for k := range exits {
		all.Go(func() {
			_, exits[k] = c.do([]int{0, 4}, "map", "set", "store/allow", key, fmt.Sprint(k+1), "--if-absent")
		})
	}
	all.Wait()
	winner := slices.Index(exits[:], 0)
	if won := 3 - len(slices.DeleteFunc(slices.Clone(exits[:]), func(exit int) bool { return exit == 0 })); won != 1 {
		c.Errorf("%s was added by %d of 3", key, won)
	}
	if got := c.value(key); got != winner+1 {
		c.Errorf("%s is %d, added as %d", key, got, winner+1)
	}
}

// imports many keys that nobody else writes, and finds the last one.
func (c *crowd) imports(i int) {
	var lines strings.Builder
	lines.WriteString("key,value\n")
	for n := range 100 {
		fmt.Fprintf(&lines, "10.100.0.%d,%d\n", n, i%200)
	}
	file := filepath.Join(c.TempDir(), fmt.Sprint(i, ".csv"))
	if err := os.WriteFile(file, []byte(lines.String()), 0o600); err != nil {
		c.Error(err)
	}
	c.do(works, "map", "import", "store/allow", file)
	c.do(works, "map", "next", "store/allow")
	if got := c.value("10.100.0.99"); got != i%200 {
		c.Errorf("10.100.0.99 is %d, was imported as %d", got, i%200)
	}
	var entries []struct {
		Key   string
		Value int
	}
	c.decode(&entries, "map", "dump", "store/allow")
	for _, e := range entries {
		if strings.HasPrefix(e.Key, "10.100.") && e.Value != i%200 {
			c.Errorf("%s is %d, was imported as %d", e.Key, e.Value, i%200)
		}
	}
}

// clears a map that the others only read.
func (c *crowd) clears(i int) {
	c.do(works, "map", "set", "store/packets_by_source_address", fmt.Sprintf("10.0.0.%d", i%250), "1")
	c.do(works, "map", "clear", "store/packets_by_source_address")
	c.do(works, "map", "set", "store/limits", fmt.Sprintf("10.%d.0.0/16", i%250), `{"pps":1,"action":"drop"}`)
	c.do(works, "map", "delete", "store/limits", fmt.Sprintf("10.%d.0.0/16", i%250))
}

// queues values that nobody else takes, in order, while others look for records
// of the same instance.
func (c *crowd) queues(i int) {
	for k := range 2 {
		c.do(works, "map", "push", "store/jobs", fmt.Sprint(i+k))
	}
	for k := range 2 {
		for _, verb := range []string{"peek", "pop"} {
			var entry struct{ Value int }
			if c.decode(&entry, "map", verb, "store/jobs"); entry.Value != i+k {
				c.Errorf("%s finds %d, pushed was %d", verb, entry.Value, i+k)
			}
		}
	}
	c.do([]int{0, 4}, "map", "events", "store/events", "--for", "20ms") // 4: somebody has it open to show it
}

// makesMaps makes a map, pins it again, and freezes it.
func (c *crowd) makesMaps(i int) {
	first, second := c.root+"-made", c.root+"-again"
	c.do(works, "map", "create", first, "--type", "hash", "--key-size", "4", "--value-size", "4", "--max-entries", "2")
	c.do(works, "map", "pin", first, second)
	c.do(works, "map", "set", second, "hex:00000000", "hex:00000001")
	c.do(works, "map", "freeze", first)
	c.do([]int{4, 5}, "map", "set", second, "hex:00000000", "hex:00000002")
	c.do(works, "map", "unpin", first)
	c.do(works, "map", "unpin", second)
}

// changesPolicy allows two ports at a time, and forbids them again. A policy has
// both of anybody's or none.
func (c *crowd) changesPolicy(k, i int) {
	pair := []string{fmt.Sprintf("%d/tcp", 1000+k), fmt.Sprintf("%d/udp", 1000+k)}
	verb, want := "allow", true
	if i%2 == 1 {
		verb, want = "remove", false
	}
	c.do(works, append([]string{"ports", verb, "-q"}, pair...)...)
	var policy struct{ Rules []struct{ Ports string } }
	c.decode(&policy, "ports", "list")
	has := map[string]bool{}
	for _, rule := range policy.Rules {
		has[rule.Ports] = true
	}
	if has[pair[0]] != want {
		c.Errorf("after %s of %s: %v", verb, pair, policy.Rules)
	}
	for other := range 3 {
		if has[fmt.Sprintf("%d/tcp", 1000+other)] != has[fmt.Sprintf("%d/udp", 1000+other)] {
			c.Errorf("half of a change is in the policy: %v", policy.Rules)
		}
	}
}

// blocks adds entries to a list at the same time, of which none is lost, and
// replaces another list.
func (c *crowd) blocks(i int) {
	var all sync.WaitGroup
	for k := range 3 {
		all.Go(func() {
			c.do(works, "blocklist", "add", fmt.Sprintf("198.51.%d.%d", 100+k, i%250), "--list", "crowd", "-q")
		})
	}
	all.Wait()
	var entries []struct{ Prefix string }
	c.decode(&entries, "blocklist", "list", "--list", "crowd")
	c.do(works, "blocklist", "export", "--list", "crowd")
	if want := 3 * (i%20 + 1); len(entries) != want {
		c.Errorf("the list has %d entries, %d were added", len(entries), want)
	}
	if i%20 == 19 {
		c.do(works, "blocklist", "clear", "--list", "crowd", "-q")
	}
	file := filepath.Join(c.TempDir(), "feed")
	if err := os.WriteFile(file, []byte(feed(i%2*500+1)), 0o600); err != nil {
		c.Error(err)
	}
	c.do(works, "blocklist", "import", file, "--list", "feed", "--replace", "-q")
	c.do(works, "blocklist", "action", []string{"drop", "alert"}[i%2], "--list", "feed", "-q")
	c.do(works, "blocklist", "test", "198.18.0.0")
	c.do(works, "blocklist", "remove", "198.51.100.250", "--list", "feed", "-q")
	c.do(works, "blocklist", "sync", "-q")
	c.do(contended, "watch", "alerts", "--for", "50ms", "-q")
	c.do(contended, "watch", "dns", "--for", "50ms", "-q")
}

func (c *crowd) setsDefault(i int) {
	c.do(works, "ports", "default", []string{"drop", "pass"}[i%2], "-q")
	c.do(works, "ports", "deny", "22/tcp", "-q", "--dry-run")
}

// managesInstance does to one instance what others do to it as well.
func (c *crowd) managesInstance(k, i int) {
	lines := []string{
		"load xdp-counter --name shared", "attach xdp shared --dev veth-a --mode generic", "load xdp-counter --name shared --replace --reuse-maps --prog xdp_counter",
		"status shared", "load xdp-counter --name shared --replace", "detach xdp shared", "attach xdp shared --dev veth-a --mode generic --dry-run", "unload shared --detach",
		"watch counters --instance shared --once", "run xdp-counter --dev veth-b --mode generic --count 1 --interval 100ms",
	}
	c.do(contended, strings.Fields(lines[(i+3*k)%len(lines)])...)
}

func (c *crowd) attachesToDevice(int) {
	c.do(works, "attach", "tc", "pt", "--dev", "veth-a", "--direction", "both")
	c.do(works, "watch", "pods", "--instance", "pt", "--once")
	// Before it listens for signals SIGINT ends it.
	c.within([]string{"timeout", "--preserve-status", "--signal=INT", "1"}, []int{0, 130}, "export", "prometheus", "--listen", "127.0.0.1:0", "-q")
	c.do(works, "detach", "tc", "pt", "--dev", "veth-a")
}

func (c *crowd) attachesToCgroup(int) {
	c.do(works, "attach", "cgroup", "pt", "--cgroup", c.cgroup)
	c.do(works, "cgroup", "show", c.cgroup)
	c.do(works, "detach", "cgroup", "pt", "--cgroup", c.cgroup)
	c.do(works, "attach", "sockops", "several", "--cgroup", c.cgroup)
	c.do(works, "detach", "sockops", "several", "--cgroup", c.cgroup)
}

func (c *crowd) attachesToTrace(int) {
	c.do(works, "attach", "trace", "several")
	c.do(works, "detach", "trace", "several")
	c.do(works, "attach", "trace", "flows")
	c.do(works, "detach", "trace", "flows")
}

// readers are commands that change nothing.
var readers = []string{
	"status", "prog list", "link list", "net show", "map list", "map show store/allow", "map dump store/allow --limit 10", "programs", "ports list",
	"map watch store/allow --interval 50ms --count 2", "status --interval 50ms --once", "doctor", "version", "-j prog list", "-j link list", "-j map list",
	"map list --fill", "prog show port-filter/port_filter_egress", "link show port-filter", "completion bash", "completion zsh", "completion fish",
	"blocklist list --hits", "blocklist lists", "endpoint list", "endpoint show pid:1",
	"watch flows --once --since-load --limit 5", "watch flows --instance none --once --interval 50ms", "flows sum --limit 5", "connections count --limit 5",
	"watch connections --for 50ms", "watch dns --for 50ms", "watch drops --once --interval 50ms",
	"watch peers --once", "baseline learn --replay testdata/samples.ndjson", "baseline show testdata/baseline.json", "baseline diff testdata/baseline.json testdata/baseline.json",
}
