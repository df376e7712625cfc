package test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"bpfnet/internal/testkit"
)

// matrix makes TestMatrix print what it found, for docs/kernels.md.
var matrix = flag.Bool("matrix", false, "print a line for each command of TestMatrix")

// outcome is what became of a command on this kernel.
type outcome struct {
	Command string `json:"command"`
	Exit    int    `json:"exit"`
	How     string `json:"how"` // the mechanism, or the error
}

// mechanism is a filter for jq, as others below: how an attachment was made.
const mechanism = `[(.attachments // [.])[] | .mechanism + " " + .hook + (if .mode then " " + .mode else "" end)] | unique | join(", ")`

// everyCommand is what TestMatrix runs, in this order; how, a filter for jq, reads
// the mechanism.
var everyCommand = []struct{ command, how string }{
	{"version", ""},
	{"completion bash", ""},
	{"doctor", ""},
	{"programs", ""},
	{"run xdp-counter --dev veth-a --mode generic --once", ""},
	{"load pod-traffic", ""},
	{"load xdp-counter", ""},
	{"load port-filter", ""},
	{"load $OBJECTS/limits.o --name limits", ""},
	{"load $OBJECTS/several.o --name several --prog sockets --prog switches", ""},
	{"load $OBJECTS/several.o --name typed --prog switches_typed", ""},
	{"load $OBJECTS/tracers.o --name fentry --prog reads_typed", ""},
	{"load $OBJECTS/tracers.o --name kprobe --prog reads", ""},
	{"load $OBJECTS/tracers.o --name tracepoint --prog switches", ""},
	{"attach tc pod-traffic --dev veth-a --direction both", mechanism},
	{"attach tc limits --prog count --dev veth-a --direction ingress --first", mechanism},
	{"attach xdp xdp-counter --dev veth-b", mechanism},
	{"detach xdp xdp-counter", ""},
	{"attach xdp xdp-counter --dev veth-b --mode generic", mechanism},
	{"attach cgroup pod-traffic --cgroup $CGROUP", mechanism},
	{"attach sockops several --prog sockets --cgroup $CGROUP", mechanism},
	{"attach trace several --prog switches", mechanism},
	{"attach trace typed", mechanism},
	{"attach trace fentry", mechanism},
	{"attach trace kprobe", mechanism},
	{"attach trace tracepoint", mechanism},
	{"load pod-traffic --replace --set match_prefixes=1", ""},
	{"ports allow 80/tcp", ""},
	{"ports deny 81/tcp", ""},
	{"ports remove 81/tcp", ""},
	{"ports default drop --established", ""},
	{"ports list", ""},
	{"load blocklist", ""},
	{"attach tc blocklist --dev veth-b --direction both", mechanism},
	{"blocklist add 198.51.100.0/24 2001:db8:bad::/48", ""},
	{"blocklist add --domain *.bad.example", ""},
	{"blocklist list --hits", ""},
	{"watch alerts --for 100ms", ""},
	{"blocklist clear", ""},
	{"load dns", ""},
	{"attach tc dns --dev veth-a --direction both", mechanism},
	{"attach cgroup dns --cgroup $CGROUP", mechanism},
	{"map events dns/dns_events --for 100ms", ""},
	{"watch dns --for 100ms", ""},
	{"load drops --name drops", ""},
	{"attach trace drops", mechanism},
	{"watch drops --once", ""},
	{"load flows --name flows", ""},
	{"attach trace flows", mechanism},
	{"watch flows --once --since-load", ".backend.tcp_transmit"},
	{"flows sum", ".backend.tcp_transmit"},
	{"watch connections --for 100ms", ""},
	{"connections count", ""},
	{"load peers", ""},
	{"attach tc peers --dev veth-a --direction both", mechanism},
	{"attach cgroup peers --cgroup $CGROUP", mechanism},
	{"watch peers --once", ""},
	{"watch alerts --rule fanout --fanout 50/1s --for 100ms", ""},
	{"baseline learn --for 100ms", ""},
	{"watch pods --once", ""},
	{"watch counters --once", ""},
	{"status --interval 200ms --count 1", ""},
	{"map list --fill --pids", ""},
	{"map set limits/limits 10.0.0.0/8 {\"pps\":1,\"action\":\"drop\"}", ""},
	{"map dump limits/limits", ""},
	{"map dump pod-traffic/pods", ""},
	{"map dump xdp-counter/packets", ""},
	{"map get limits/.data 0", ""},
	{"map import limits/limits $ENTRIES", ""},
	{"map next limits/limits", ""},
	{"map delete limits/limits 10.0.0.0/8", ""},
	{"map watch limits/limits --once", ""},
	{"map events limits/events --for 100ms", ""},
	{"map push limits/jobs 1", ""},
	{"map peek limits/jobs", ""},
	{"map pop limits/jobs", ""},
	{"map create $PINS/made --type hash --key-size 4 --value-size 4 --max-entries 8", ""},
	{"map pin limits/limits $PINS/limits", ""},
	{"map unpin $PINS/limits", ""},
	{"map freeze $PINS/made", ""},
	{"map clear limits/limits", ""},
	{"prog list", ""},
	{"link list", ""},
	{"net show", `[.[].hook] | unique | join(", ")`},
	{"cgroup show $CGROUP", `[.[].hook] | unique | join(", ")`},
	{"endpoint list", ""},
	{"endpoint show pid:1", ".[0].kind"},
	{"-j prog show", ""},
	{"-j link show", ""},
	{"-j map show", ""},
	{"-j net show", ""},
	{"-j cgroup show $CGROUP", ""},
	{"detach tc pod-traffic", ""},
	{"detach cgroup pod-traffic", ""},
	{"detach sockops several", ""},
	{"detach trace several", ""},
	{"detach trace flows", ""},
	{"unload --all --detach", ""},
}

// TestMatrix runs every command once on a node of its own. Each works, or says in
// one line why not: exit 6, or 7 where only the verifier knows. It does what it
// did when docs/kernels.md was made.
func TestMatrix(t *testing.T) {
	n := newNode(t)
	places := matrixPlaces(t)
	kept := keptOutcomes(t)
	refused := map[string]outcome{} // loads of instances
	for _, c := range everyCommand {
		args := strings.Fields(os.Expand(c.command, func(name string) string { return places[name] }))
		o, without := refused[args[min(2, len(args)-1)]]
		if !without {
			o = n.outcome(t, args, c.how)
		}
		if at := slices.Index(args, "--name"); at > 0 && o.Exit != 0 {
			refused[args[at+1]] = o
		}
		o.Command = strings.ReplaceAll(c.command, "$OBJECTS/", "")
		if !slices.Contains(matrixExits(), o.Exit) {
			t.Errorf("%s: exit %d: %s", c.command, o.Exit, o.How)
		}
		if *matrix {
			printOutcome(t, o)
		} else if was, known := kept[o.Command]; known && (o.Exit != was.Exit || o.Exit == 0 && o.How != was.How) {
			t.Errorf("%s: exit %d, %q; it was exit %d, %q: if that is meant, test/vm/kernels writes it down", c.command, o.Exit, o.How, was.Exit, was.How)
		}
	}
}

// matrixPlaces are what the commands name.
func matrixPlaces(t *testing.T) map[string]string {
	t.Helper()
	objects, err := filepath.Abs("../internal/datapath/testdata")
	if err != nil {
		t.Fatal(err)
	}
	pins := testkit.Root(t)
	if err := os.Mkdir(pins, 0o700); err != nil {
		t.Fatal(err)
	}
	entries := filepath.Join(t.TempDir(), "entries.json")
	if err := os.WriteFile(entries, []byte(`[{"key":"10.0.0.0/8","value":{"pps":1,"action":"drop"}}]`), 0o600); err != nil {
		t.Fatal(err)
	}
	return map[string]string{"OBJECTS": objects, "CGROUP": testkit.Cgroup(t), "PINS": pins, "ENTRIES": entries}
}

// keptOutcomes are those that docs/kernels.md was made of, of this kernel when it
// is one of them: test/vm/tests names it.
func keptOutcomes(t *testing.T) map[string]outcome {
	t.Helper()
	file, err := os.Open("vm/kernels.ndjson")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	kept := map[string]outcome{}
	for lines := json.NewDecoder(file); ; {
		var line struct {
			Kernel string `json:"kernel"`
			outcome
		}
		if err := lines.Decode(&line); err == io.EOF {
			return kept
		} else if err != nil {
			t.Fatal(err)
		}
		if line.Kernel == os.Getenv("BPFNET_TEST_KERNEL") {
			kept[line.Command] = line.outcome
		}
	}
}

func printOutcome(t *testing.T, o outcome) {
	t.Helper()
	line, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("matrix %s\n", line)
}

// fewCapabilities says whether TestMatrix runs with the three that are enough for
// most of it. The guests of "KERNEL:three-capabilities" do.
func fewCapabilities() bool { return os.Getenv("BPFNET_TEST_CAPABILITIES") == "three" }

// matrixExits are the exit codes of commands that TestMatrix takes.
func matrixExits() []int {
	if fewCapabilities() {
		return []int{0, 5, 6, 7}
	}
	return []int{0, 6, 7}
}

// volatile is what differs from run to run in an error.
var volatile = regexp.MustCompile(`(^|[" ])/[^" ]*/|0x[0-9a-f]+|_[0-9a-f]{16}\b`)

// outcome runs a command; how, a jq filter, reads its mechanism.
func (n node) outcome(t *testing.T, args []string, how string) outcome {
	t.Helper()
	if args[0] != "-j" {
		args = append(args, "-o", "json")
	}
	cmd := n.bpfnet(args...)
	if fewCapabilities() {
		cmd = n.as(enough, args...)
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	_ = cmd.Run()
	o := outcome{Exit: cmd.ProcessState.ExitCode()}
	if o.Exit != 0 {
		var doc struct{ Error struct{ Message string } }
		lines := strings.Split(strings.TrimSpace(stderr.String()), "\n")
		if err := json.Unmarshal([]byte(lines[len(lines)-1]), &doc); err != nil || doc.Error.Message == "" {
			t.Errorf("%q: exit %d without an error document: %s", args, o.Exit, stderr.String())
		}
		o.How = volatile.ReplaceAllString(doc.Error.Message, "$1")
		return o
	}
	if how != "" {
		o.How = jq(t, how, stdout.String())
	}
	return o
}
