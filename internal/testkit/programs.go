package testkit

import (
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// Redirecting is a program for tc that calls a helper, such as bpf_redirect_peer,
// to send IPv4 packets to the device of an index, as ones for that machine, and
// lets others go on.
func Redirecting(helper asm.BuiltinFunc, index uint32) asm.Instructions {
	const protocol, ipv4, packetHost = 16, 0x0008, 0 // where in struct __sk_buff; as it is there; PACKET_HOST
	return asm.Instructions{
		asm.LoadMem(asm.R2, asm.R1, protocol, asm.Word),
		asm.JNE.Imm(asm.R2, ipv4, "next"),
		asm.Mov.Imm(asm.R2, packetHost),
		asm.FnSkbChangeType.Call(),
		asm.Mov.Imm(asm.R1, int32(index)), asm.Mov.Imm(asm.R2, 0), asm.Mov.Imm(asm.R3, 0), asm.Mov.Imm(asm.R4, 0),
		helper.Call(),
		asm.Return(),
		asm.Mov.Imm(asm.R0, -1).WithSymbol("next"),
		asm.Return(),
	}
}

// Classifier loads a program for tc. The test is skipped on kernels that don't
// have a helper which it calls.
func Classifier(t testing.TB, name string, code asm.Instructions) *ebpf.Program {
	t.Helper()
	NeedsKernel(t)
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: name, Type: ebpf.SchedCLS, License: "GPL", Instructions: code})
	Needs(t, "such helper", err, unix.EINVAL)
	t.Cleanup(func() { p.Close() })
	return p
}
