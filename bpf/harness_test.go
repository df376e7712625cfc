package bpf_test

import (
	"errors"
	"os"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"bpfnet/bpf"
	"bpfnet/bpf/packettest"
	"bpfnet/internal/testkit"
)

// Verdicts of the programs under test.
const (
	tcNext    = 0xffffffff
	tcDrop    = 2
	xdpDrop   = 1
	xdpPass   = 2
	cgroupYes = 1
)

func TestMain(m *testing.M) { os.Exit(testkit.Run(m)) }

// load loads a built-in program, after adjust changed its specification.
func load(t *testing.T, name string, adjust func(*ebpf.CollectionSpec)) *ebpf.Collection {
	t.Helper()
	program, ok := bpf.Lookup(name)
	if !ok {
		t.Fatalf("no built-in program %s", name)
	}
	spec, err := program.Spec()
	if err != nil {
		t.Fatal(err)
	}
	if adjust != nil {
		adjust(spec)
	}
	collection, err := ebpf.NewCollection(spec)
	if errors.Is(err, unix.EPERM) {
		t.Skipf("loading BPF programs needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON: %v", err)
	}
	if err != nil {
		t.Fatalf("load %s: %+v", name, err)
	}
	t.Cleanup(collection.Close)
	return collection
}

// run runs a program once on a packet and returns its verdict.
func run(t *testing.T, program *ebpf.Program, packet []byte) uint32 {
	t.Helper()
	return runWith(t, program, packet, nil)
}

func runWith(t *testing.T, program *ebpf.Program, packet []byte, context *packettest.SKBuff) uint32 {
	t.Helper()
	options := ebpf.RunOptions{Data: packet, Repeat: 1}
	if context != nil {
		options.Context = context
	}
	verdict, err := program.Run(&options)
	if err != nil {
		t.Fatalf("run %v on %d bytes: %v", program, len(packet), err)
	}
	return verdict
}

// sum adds up the CPUs' copies of one entry.
func sum[T any](t *testing.T, m *ebpf.Map, key any, add func(total *T, one T)) T {
	t.Helper()
	var total T
	var each []T
	if err := m.Lookup(key, &each); err != nil {
		t.Fatalf("look up %v in %v: %v", key, m, err)
	}
	for _, one := range each {
		add(&total, one)
	}
	return total
}

// clearEntry sets an entry of a per-CPU map to zero.
func clearEntry[T any](t *testing.T, m *ebpf.Map, key uint32) {
	t.Helper()
	if err := m.Put(key, make([]T, ebpf.MustPossibleCPU())); err != nil {
		t.Fatal(err)
	}
}
