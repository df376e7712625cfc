// Package bpftool reads what the kernel has of programs, links and attachments
// and describes it as bpftool does: the same keys, the same words, the same
// shapes, so that a script written for "bpftool -j" works with bpfnet.
//
// Where bpftool prints what isn't JSON, prints nothing, or is wrong, this package
// differs; docs/output.md lists every difference.
package bpftool

import (
	"bpfnet/pinned"
)

// API is what the commands call that print as bpftool does. *Kernel implements
// it; command tests use a fake.
type API interface {
	Maps
	MapWalker
	Programs
	Links
	Networks
	Cgroups
}

// Kernel is the running kernel, seen from one network namespace.
type Kernel struct {
	root     pinned.Root
	netns    string // path; empty: the caller's
	mapNotes []string
}

var _ API = (*Kernel)(nil)

// New returns the kernel seen from the network namespace at the path netns,
// empty for the caller's. Names of loaded instances are looked up below root, a
// directory in bpffs; empty means pinned.DefaultRoot. It doesn't touch the
// kernel.
func New(root, netns string) *Kernel {
	if root == "" {
		root = pinned.DefaultRoot
	}
	return &Kernel{root: pinned.Root(root), netns: netns}
}
