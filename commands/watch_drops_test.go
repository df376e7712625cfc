package commands

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"unicode/utf8"

	"bpfnet/internal/drops"
)

// TestLiveDrops watches drops on a terminal, where there is only room for the first two.
func TestLiveDrops(t *testing.T) {
	const columns, lines = 80, linesBeside + 2
	var stdout, stderr bytes.Buffer
	f := newFake()
	f.on("load drops")
	env := f.env(&stdout, &stderr)
	env.Terminal = func() (int, int, bool) { return columns, lines, true }
	if exit := Run(context.Background(), env, strings.Fields("watch drops --once")); exit != 0 {
		t.Fatalf("exit %d: %s", exit, stderr.String())
	}
	frame := escapes.ReplaceAllString(stdout.String(), "")
	for line := range strings.Lines(frame) {
		if n := utf8.RuneCountInString(strings.TrimRight(line, "\n")); n > columns {
			t.Errorf("%d columns: %s", n, line)
		}
	}
	if n := strings.Count(frame, "\n"); n > lines-1 || !strings.Contains(frame, "nginx (813)") || !strings.Contains(frame, "\nothers") || !strings.Contains(frame, "10.77.0.4:901") {
		t.Errorf("%d lines:\n%s", n, frame)
	}
}

func TestDropPlace(t *testing.T) {
	const host, inside, other = 1, 2, 3
	container := dropPlace{cgroups: map[uint64]bool{77: true}, devices: map[uint32]bool{4: true}, network: inside}
	unknown := dropPlace{devices: map[uint32]bool{4: true}, network: inside}
	onHost := dropPlace{cgroups: map[uint64]bool{77: true}}
	for _, c := range []struct {
		name  string
		place dropPlace
		key   drops.Key
		want  bool
	}{
		{"its socket", container, drops.Key{NetNS: other, CgroupID: 77}, true},
		{"its network", container, drops.Key{NetNS: inside}, true},
		{"its interface", container, drops.Key{NetNS: host, IfIndex: 4}, true},
		{"to it from the host", container, drops.Key{NetNS: host, IfIndex: 4, CgroupID: 78, SocketNetNS: host}, true},
		{"of the Pod's other container", container, drops.Key{NetNS: inside, CgroupID: 78, SocketNetNS: inside}, false},
		{"of the kernel", container, drops.Key{NetNS: inside, CgroupID: 1, SocketNetNS: inside}, true},
		{"another interface", container, drops.Key{NetNS: host, IfIndex: 5}, false},
		{"that index elsewhere", container, drops.Key{NetNS: other, IfIndex: 4}, false},
		{"without cgroups", unknown, drops.Key{NetNS: inside, CgroupID: 78, SocketNetNS: inside}, true},
		{"on the host's network", onHost, drops.Key{NetNS: host, CgroupID: 77}, true},
		{"another one's there", onHost, drops.Key{NetNS: host}, false},
		{"of an unknown network", onHost, drops.Key{}, false},
	} {
		if got := c.place.has(c.key, host); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}
