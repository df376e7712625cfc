package test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
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

// TestMatrix runs every command once, in this order, on a node of its own. Each
// works, or says in one line why not: exit 6, or 7 where only the verifier knows.
func TestMatrix(t *testing.T) {
	n := newNode(t)
	cgroup := testkit.Cgroup(t)
	objects, err := filepath.Abs("../internal/datapath/testdata")
	if err != nil {
		t.Fatal(err)
	}
	refused := map[string]outcome{} // loads of instances
	for _, c := range []struct{ command, how string }{
		{"doctor", ""},
		{"programs", ""},
		{"load pod-traffic", ""},
		{"load xdp-counter", ""},
		{"load port-filter", ""},
		{"load $OBJECTS/limits.o --name limits", ""},
		{"load $OBJECTS/several.o --name several --prog sockets --prog switches", ""},
		{"load $OBJECTS/several.o --name typed --prog switches_typed", ""},
		{"attach tc pod-traffic --dev veth-a --direction both", mechanism},
		{"attach tc limits --prog count --dev veth-a --direction ingress --first", mechanism},
		{"attach xdp xdp-counter --dev veth-b", mechanism},
		{"detach xdp xdp-counter", ""},
		{"attach xdp xdp-counter --dev veth-b --mode generic", mechanism},
		{"attach cgroup pod-traffic --cgroup $CGROUP", mechanism},
		{"attach sockops several --prog sockets --cgroup $CGROUP", mechanism},
		{"attach trace several --prog switches", mechanism},
		{"attach trace typed", mechanism},
		{"load pod-traffic --replace --set match_prefixes=1", ""},
		{"ports allow 80/tcp", ""},
		{"ports default drop --established", ""},
		{"ports list", ""},
		{"watch pods --once", ""},
		{"watch counters --once", ""},
		{"status --interval 200ms --count 1", ""},
		{"map list --fill --pids", ""},
		{"map set limits/limits 10.0.0.0/8 {\"pps\":1,\"action\":\"drop\"}", ""},
		{"map dump limits/limits", ""},
		{"map dump pod-traffic/pods", ""},
		{"map dump xdp-counter/packets", ""},
		{"map get limits/.data 0", ""},
		{"map watch limits/limits --once", ""},
		{"map events limits/events --for 100ms", ""},
		{"map push limits/jobs 1", ""},
		{"map peek limits/jobs", ""},
		{"map clear limits/limits", ""},
		{"prog list", ""},
		{"link list", ""},
		{"net show", `[.[].hook] | unique | join(", ")`},
		{"cgroup show $CGROUP", `[.[].hook] | unique | join(", ")`},
		{"-j prog show", ""},
		{"-j link show", ""},
		{"-j map show", ""},
		{"-j net show", ""},
		{"-j cgroup show $CGROUP", ""},
		{"detach tc pod-traffic", ""},
		{"unload --all --detach", ""},
	} {
		args := strings.Fields(os.Expand(c.command, func(name string) string {
			return map[string]string{"OBJECTS": objects, "CGROUP": cgroup}[name]
		}))
		o, without := refused[args[min(2, len(args)-1)]]
		if !without {
			o = n.outcome(t, args, c.how)
		}
		if at := slices.Index(args, "--name"); at > 0 && o.Exit != 0 {
			refused[args[at+1]] = o
		}
		o.Command = strings.ReplaceAll(c.command, "$OBJECTS/", "")
		if o.Exit != 0 && o.Exit != 6 && o.Exit != 7 {
			t.Errorf("%s: exit %d: %s", c.command, o.Exit, o.How)
		}
		if *matrix {
			line, err := json.Marshal(o)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Printf("matrix %s\n", line)
		}
	}
}

// volatile is what differs from run to run in an error.
var volatile = regexp.MustCompile(`"?/[^" ]*/|0x[0-9a-f]+`)

// outcome runs a command; how, a jq filter, reads its mechanism.
func (n node) outcome(t *testing.T, args []string, how string) outcome {
	t.Helper()
	if args[0] != "-j" {
		args = append(args, "-o", "json")
	}
	cmd := n.bpfnet(args...)
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
		o.How = volatile.ReplaceAllString(doc.Error.Message, "")
		return o
	}
	if how != "" {
		o.How = jq(t, how, stdout.String())
	}
	return o
}
