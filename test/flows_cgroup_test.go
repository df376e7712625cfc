package test

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"bpfnet/internal/testkit"
)

// apart runs bpfnet where it sees no cgroup2 but the one below a directory, if that is
// given, and returns what it prints on stderr.
func (n node) apart(t *testing.T, cgroup string, exit int, args ...string) string {
	t.Helper()
	const script = `
mount --make-rprivate /
awk -F ' - ' '$2 ~ /^cgroup2 / { split($1, f, " "); print f[5] }' /proc/self/mountinfo | xargs -r umount -l
[ -z "$CGROUP" ] || mount -t cgroup2 none /mnt
exec "$@"`
	var stderr bytes.Buffer
	line := append([]string{"-ec", `[ -z "$CGROUP" ] || echo $$ >"$CGROUP/cgroup.procs"; exec unshare -m -C sh -ec "$0" sh "$@"`, script}, n.bpfnet(args...).Args...)
	cmd := exec.Command("sh", line...)
	cmd.Env = append(append(os.Environ(), n.env()...), "CGROUP="+cgroup)
	cmd.Stderr = &stderr
	_ = cmd.Run()
	if got := cmd.ProcessState.ExitCode(); got != exit {
		t.Errorf("%q: exit %d, want %d: %s", args, got, exit, &stderr)
	}
	return stderr.String()
}

// Where the programs at the root of cgroup2 can't be attached, nothing of flows is, and it
// is said why; who only watches is told what is missing.
func TestFlowsWithoutCgroup(t *testing.T) {
	n := newNode(t)
	if out, err := n.bpfnet("load", "flows").CombinedOutput(); bytes.Contains(out, []byte("not supported")) {
		t.Skip(string(out))
	} else if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	held := testkit.Cgroup(t)
	holds(t, held)
	for _, c := range []struct {
		cgroup string
		exit   int
		says   string
	}{
		{"", 6, "cgroup2"},
		{held, 4, "cgroup_udp4_sendmsg: a program that was attached without BPF_F_ALLOW_MULTI owns the hook"},
	} {
		if says := n.apart(t, c.cgroup, c.exit, "attach", "trace", "flows"); !strings.Contains(says, c.says) || !strings.Contains(says, "hint: ") {
			t.Errorf("%s", says)
		}
		if got := jq(t, ".instances[0].attachments | length", n.must(t, "status", "-o", "json")); got != "0" {
			t.Errorf("%s are attached", got)
		}
		if says := n.apart(t, c.cgroup, 0, "watch", "flows", "--instance", "none", "--once", "--since-load"); !strings.Contains(says, c.says) {
			t.Errorf("%s", says)
		}
	}
	n.must(t, "attach", "trace", "flows")
}

// holds attaches a program to a cgroup that wants to be alone.
func holds(t *testing.T, cgroup string) {
	t.Helper()
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.CGroupSockAddr, AttachType: ebpf.AttachCGroupUDP4Sendmsg, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer prog.Close()
	dir, err := os.Open(cgroup)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dir.Close() })
	if err := link.RawAttachProgram(link.RawAttachProgramOptions{Target: int(dir.Fd()), Program: prog, Attach: ebpf.AttachCGroupUDP4Sendmsg}); err != nil {
		t.Fatal(err)
	}
}
