package datapath

import "golang.org/x/sys/unix"

// liftMemlock lifts RLIMIT_MEMLOCK, against which kernels before 5.11 count maps
// and programs. Loading says what is missing if that isn't permitted. It can't
// wait for loading to fail: what cilium/ebpf then couldn't try out, such as names
// of maps, it takes for missing from there on. Its own package rlimit creates
// maps at the start of every process that imports it.
func liftMemlock() {
	_ = unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY})
}
