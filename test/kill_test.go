package test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// changes are the system calls by which bpfnet changes anything.
const changes = "bpf,mkdirat,renameat,renameat2,symlinkat,unlinkat,sendto"

// TestKillAtEveryStep kills each command that changes something at each of its
// system calls that may, and runs it again: the second run must succeed and
// leave what one undisturbed run leaves.
func TestKillAtEveryStep(t *testing.T) {
	if _, err := exec.LookPath("strace"); err != nil {
		t.Skip("needs strace, which kills at a given system call")
	}
	load := []string{"load", "xdp-counter"}
	attach := []string{"attach", "xdp", "xdp-counter", "--dev", "veth-a", "--mode", "generic"}
	tc := []string{"attach", "tc", "pod-traffic", "--dev", "veth-a", "--direction", "both"}
	for _, c := range []struct {
		name    string
		prepare [][]string
		command []string
	}{
		{"load", nil, load},
		{"attach-xdp", [][]string{load}, attach},
		{"attach-tc", [][]string{{"load", "pod-traffic"}}, tc},
		{"replace", [][]string{load, attach}, []string{"load", "xdp-counter", "--replace", "--reuse-maps", "--prog", "xdp_counter"}},
		{"detach", [][]string{load, attach}, []string{"detach", "xdp", "xdp-counter"}},
		{"unload", [][]string{load, attach}, []string{"unload", "xdp-counter", "--detach"}},
		{"ports", [][]string{{"load", "port-filter"}}, []string{"ports", "allow", "80/tcp", "443/tcp"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newNode(t)
			n.prepare(t, c.prepare)
			n.must(t, c.command...)
			want := n.summary(t)
			kills := 0
			for step := 1; ; step++ {
				n.must(t, "unload", "--all", "--detach")
				n.prepare(t, c.prepare)
				if !n.killedAt(t, step, c.command) {
					break
				}
				kills++
				n.status(t) // readers work whatever was left
				n.must(t, c.command...)
				if got := n.summary(t); got != want {
					t.Errorf("killed at step %d: %s, want %s", step, got, want)
				}
				n.noLeftovers(t, step)
			}
			n.must(t, "unload", "--all", "--detach")
			t.Logf("%d kills", kills)
			if kills < 3 {
				t.Errorf("killed only %d times", kills)
			}
		})
	}
}

func (n node) prepare(t *testing.T, commands [][]string) {
	t.Helper()
	for _, c := range commands {
		n.must(t, c...)
	}
}

// killedAt runs bpfnet and kills it as it enters the given call among changes.
func (n node) killedAt(t *testing.T, step int, args []string) bool {
	t.Helper()
	run := n.bpfnet(args...)
	trace := []string{"-f", "-qq", "-o", "/dev/null", "-e", "trace=" + changes,
		"-e", fmt.Sprintf("inject=%s:signal=KILL:when=%d", changes, step), run.Path}
	cmd := exec.Command("strace", append(trace, run.Args[1:]...)...)
	cmd.Env = run.Env
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return false
	case errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signaled():
		return true
	default:
		t.Fatalf("strace at step %d: %v\n%s", step, err, out)
		return false
	}
}

// instance is one of the document bpfnet.status/v1, as far as this test reads it.
type instance struct {
	Name        string
	Programs    []struct{ ID uint32 }
	Maps        []struct{ Name string }
	Attachments []struct {
		Program string
		Hook    string
		ProgID  uint32 `json:"prog_id"`
		Defunct bool
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
			current := false
			for _, p := range i.Programs {
				current = current || p.ID == a.ProgID
			}
			if !current || a.Defunct {
				text.WriteString("!")
			}
		}
		text.WriteString(") ")
	}
	return text.String()
}

// noLeftovers fails if the root holds anything but whole instances.
func (n node) noLeftovers(t *testing.T, step int) {
	t.Helper()
	entries, err := os.ReadDir(n.root)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "@") && e.Name() != "@made" {
			t.Errorf("killed at step %d: %s is left", step, filepath.Join(n.root, e.Name()))
		}
	}
}
