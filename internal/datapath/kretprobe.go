package datapath

import (
	"os"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// callsAtOnce is how many calls of a function may wait for their return; the kernel misses
// more, and by itself few more than it has processors.
const callsAtOnce = 4096

const (
	kprobeEvents = "/sys/kernel/tracing/kprobe_events"
	eventPrefix  = "bpfnet"
)

// kretprobe attaches to the return of a function. The number needs an event in tracefs.
func kretprobe(what string, prog *ebpf.Program) (link.Link, error) {
	l, err := link.Kretprobe(what, prog, &link.KprobeOptions{RetprobeMaxActive: callsAtOnce, TraceFSPrefix: eventPrefix})
	if err != nil {
		return link.Kretprobe(what, prog, nil)
	}
	return l, nil
}

// returnsFirst orders sections so that kretprobes come first: whose entry is seen, its return
// is, too.
func returnsFirst(a, b string) int {
	const kind = "kretprobe/"
	first, second := strings.HasPrefix(a, kind), strings.HasPrefix(b, kind)
	switch {
	case first == second:
		return 0
	case first:
		return -1
	}
	return 1
}

// dropEvents removes events of kretprobes that nothing uses any more: they outlive a link
// that was pinned, or a process that was killed. The kernel frees a link some time after its
// pin, and refuses to remove what is in use.
func dropEvents() {
	const tries, pause = 10, 50 * time.Millisecond
	for range tries {
		if !dropFreeEvents() {
			return
		}
		time.Sleep(pause)
	}
}

// dropFreeEvents says whether some are left that are in use.
func dropFreeEvents() (left bool) {
	text, err := os.ReadFile(kprobeEvents)
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(text)) {
		definition, _, _ := strings.Cut(line, " ")
		_, event, _ := strings.Cut(definition, ":")
		if strings.HasPrefix(event, eventPrefix+"_") {
			left = dropEvent(event) != nil || left
		}
	}
	return left
}

// dropEvent appends: who truncates the file removes everybody's.
func dropEvent(event string) error {
	f, err := os.OpenFile(kprobeEvents, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString("-:" + event)
	return err
}
