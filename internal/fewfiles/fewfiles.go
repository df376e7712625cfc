// Package fewfiles says so where a process may open fewer files than Go and packages
// need to start: they would end it with a stack trace. It is imported for that alone.
//
// Packages begin in the order of their paths as soon as what they import has, so this
// one imports next to nothing, to begin before google.golang.org/protobuf, which reads
// the program.
package fewfiles

import "syscall"

// least is how many open files starting takes: the standard ones, one to read, and
// those of the runtime's poller.
const least = 8

const message = "bpfnet: the limit of open files is less than 8: too many open files\n"

func init() {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil || limit.Cur >= least {
		return
	}
	_, _ = syscall.Write(syscall.Stderr, []byte(message)) // ends anyway
	syscall.Exit(1)
}
