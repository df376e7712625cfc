package commands

import (
	"context"
	"io"
	"time"

	"bpfnet/internal/counter"
	"bpfnet/internal/datapath"
	"bpfnet/internal/maps"
	"bpfnet/internal/ports"
	"bpfnet/internal/probe"
	"bpfnet/internal/traffic"
)

// Env is everything outside the program that a command touches. SystemEnv binds
// the real ones; command tests bind fakes.
type Env struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer

	// Open returns what commands work on. It doesn't touch the kernel before
	// the first call that needs it.
	Open func(ctx context.Context, options datapath.Options) (Backend, error)
	// Resolve turns the value of --netns into a path that can be opened.
	Resolve func(netns string) (path string, err error)

	Now      func() time.Time
	Getenv   func(string) string
	ReadFile func(string) ([]byte, error)
	// Terminal says whether Stdout is a terminal, and how wide.
	Terminal func() (columns int, ok bool)
	// Interfaces lists interface names, for completion.
	Interfaces func() ([]string, error)
}

// Backend is what the commands call: the datapath and the programs' own maps.
type Backend interface {
	datapath.API
	Maps() maps.API
	Probe(ctx context.Context) probe.Report
	SelfTest(ctx context.Context) []probe.Step
	PodTraffic(instance string) (traffic.Sampler, error)
	Counters(instance string) (counter.Sampler, error)
	Ports(instance string) (ports.API, error)
	Close() error
}
