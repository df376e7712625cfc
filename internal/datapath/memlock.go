package datapath

import (
	"github.com/cilium/ebpf/features"
	"golang.org/x/sys/unix"
)

// unlockMemory lifts RLIMIT_MEMLOCK where the kernel counts maps and programs
// against it: before Linux 5.11. It ignores errors, because loading then says
// what is missing. Package rlimit of cilium/ebpf does the same, but finds out
// by creating maps, at the start of every process that imports it.
func unlockMemory() {
	const accountsByCgroup = 5<<16 | 11<<8
	if version, err := features.LinuxVersionCode(); err != nil || version >= accountsByCgroup {
		return
	}
	_ = unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY})
}
