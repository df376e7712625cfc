package datapath

import "golang.org/x/sys/unix"

// liftMemlock lifts RLIMIT_MEMLOCK, against which kernels before 5.11 count maps
// and programs, and says whether that changed anything. Package rlimit of
// cilium/ebpf finds out beforehand whether it has to, by creating maps at the
// start of every process that imports it.
func liftMemlock() bool {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit); err != nil || limit.Cur == unix.RLIM_INFINITY {
		return false
	}
	return unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}) == nil
}
