package probe

import (
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Capability is a Linux capability by its usual name, "CAP_BPF".
type Capability string

// The capabilities that bpfnet can need.
const (
	CapBPF         Capability = "CAP_BPF"
	CapNetAdmin    Capability = "CAP_NET_ADMIN"
	CapPerfmon     Capability = "CAP_PERFMON"
	CapSysAdmin    Capability = "CAP_SYS_ADMIN"
	CapNetRaw      Capability = "CAP_NET_RAW"
	CapSysResource Capability = "CAP_SYS_RESOURCE"
	CapSysPtrace   Capability = "CAP_SYS_PTRACE"
)

// capabilityBits is in the order in which reports list them.
var capabilityBits = []struct {
	name Capability
	bit  int
}{
	{CapBPF, unix.CAP_BPF},
	{CapNetAdmin, unix.CAP_NET_ADMIN},
	{CapPerfmon, unix.CAP_PERFMON},
	{CapSysAdmin, unix.CAP_SYS_ADMIN},
	{CapNetRaw, unix.CAP_NET_RAW},
	{CapSysResource, unix.CAP_SYS_RESOURCE},
	{CapSysPtrace, unix.CAP_SYS_PTRACE},
}

// Capabilities returns which of the capabilities that bpfnet can need are
// effective in the calling thread, in a fixed order.
func Capabilities() []Capability {
	held := []Capability{}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return held
	}
	for _, c := range capabilityBits {
		if data[c.bit/32].Effective&(1<<(c.bit%32)) != 0 {
			held = append(held, c.name)
		}
	}
	return held
}

// AllCapabilities returns the capabilities that bpfnet can need, in the order of
// Capabilities.
func AllCapabilities() []Capability {
	all := make([]Capability, len(capabilityBits))
	for i, c := range capabilityBits {
		all[i] = c.name
	}
	return all
}

// missing returns those of needs that this thread lacks. CAP_SYS_ADMIN stands
// in for CAP_BPF and CAP_PERFMON, as in the kernel.
func missing(needs []Capability) []Capability {
	held := Capabilities()
	var lacking []Capability
	for _, need := range needs {
		implied := (need == CapBPF || need == CapPerfmon) && slices.Contains(held, CapSysAdmin)
		if !implied && !slices.Contains(held, need) {
			lacking = append(lacking, need)
		}
	}
	return lacking
}

// Lacking says which of needs the calling thread lacks, "CAP_BPF is missing"; "" if
// it has them all.
func Lacking(needs ...Capability) string {
	if lacking := missing(needs); len(lacking) > 0 {
		return areMissing(lacking)
	}
	return ""
}

func joinCapabilities(caps []Capability) string {
	words := make([]string, len(caps))
	for i, c := range caps {
		words[i] = string(c)
	}
	return strings.Join(words, " and ")
}

func areMissing(caps []Capability) string {
	if len(caps) == 1 {
		return joinCapabilities(caps) + " is missing"
	}
	return joinCapabilities(caps) + " are missing"
}

// inUserNamespace says whether this process' capabilities are those of a user
// namespace, which count for nothing in most BPF operations.
func inUserNamespace() bool {
	text, err := os.ReadFile("/proc/self/uid_map")
	return err == nil && strings.Join(strings.Fields(string(text)), " ") != "0 0 4294967295"
}

// underSeccomp says whether a system call filter is in force, as in containers.
func underSeccomp() bool {
	text, err := os.ReadFile("/proc/thread-self/status")
	return err == nil && strings.Contains(string(text), "\nSeccomp:\t2\n")
}
