package probe

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

const kernelBTF = "/sys/kernel/btf/vmlinux"

func probeBTF(string) error {
	file, err := os.Open(kernelBTF)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("no %s: %w", kernelBTF, ErrNotSupported)
	}
	if err != nil {
		return fmt.Errorf("open types of the kernel: %w", err)
	}
	return file.Close()
}

func probeBPFFS(dir string) error {
	_, err := bpffsOf(dir)
	return err
}

func probeSymlink(dir string) error {
	base, err := bpffsOf(dir)
	if err != nil {
		return err
	}
	return withSymlink(base)
}

func probeTestRun(string) error {
	program, err := load(ebpf.ProgramSpec{Type: ebpf.SchedCLS}, 0)
	if err != nil {
		return err
	}
	defer program.Close()
	if _, err := program.Run(&ebpf.RunOptions{Data: make([]byte, 64)}); err != nil {
		return unknownToKernel(err)
	}
	return nil
}

func probeStats(string) error {
	stats, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	if err != nil {
		return unknownToKernel(err)
	}
	return stats.Close()
}
