package datapath

import (
	"fmt"
	"strings"

	"github.com/cilium/ebpf"

	"bpfnet/internal/fault"
	"bpfnet/pinned"
)

// candidate is a program of an instance that could be attached.
type candidate struct {
	name    string
	section string
	typ     ebpf.ProgramType
	attach  ebpf.AttachType
}

// layer3Suffix marks the variant of a program for devices whose packets have no
// Ethernet header.
const layer3Suffix = "_l3"

func (e *Engine) candidates(instance string) ([]candidate, error) {
	names, err := e.root.List(instance, pinned.Progs)
	if err != nil {
		return nil, err
	}
	var all []candidate
	for _, name := range names {
		prog, err := e.openProgram(instance, name)
		if err != nil {
			return nil, err
		}
		c := candidate{name: name, typ: prog.Type()}
		prog.Close()
		c.section, c.attach = e.section(instance, name)
		all = append(all, c)
	}
	return all, nil
}

// fits says whether the program can hang on a hook, in a direction if that
// matters.
func (c candidate) fits(hook string, direction Direction) bool {
	switch hook {
	case "xdp":
		return c.typ == ebpf.XDP
	case "tc":
		return c.typ == ebpf.SchedCLS && c.allows(direction)
	case "sockops":
		return c.typ == ebpf.SockOps
	case "cgroup":
		return c.isCgroup() && c.allows(direction)
	case hookRoot:
		return c.atRoot()
	default:
		return isTrace(c.typ)
	}
}

// allows says whether the section name leaves the direction open or asks for
// this one.
func (c candidate) allows(direction Direction) bool {
	own := c.direction()
	return own == "" || direction == "" || direction == Both || own == direction
}

func (c candidate) direction() Direction {
	last := c.section[strings.LastIndex(c.section, "/")+1:]
	switch {
	case strings.HasSuffix(last, string(Ingress)):
		return Ingress
	case strings.HasSuffix(last, string(Egress)):
		return Egress
	default:
		return ""
	}
}

func (c candidate) isCgroup() bool {
	switch c.typ {
	case ebpf.CGroupDevice, ebpf.CGroupSysctl, ebpf.CGroupSKB, ebpf.CGroupSock, ebpf.CGroupSockAddr, ebpf.CGroupSockopt:
		return cgroupHooks[c.cgroupAttach()] != ""
	default:
		return false
	}
}

func (c candidate) atRoot() bool { return c.isCgroup() || c.typ == ebpf.SockOps }

// cgroupAttach returns the place in a cgroup where a cgroup program hangs.
func (c candidate) cgroupAttach() ebpf.AttachType {
	switch c.typ {
	case ebpf.SockOps:
		return ebpf.AttachCGroupSockOps
	case ebpf.CGroupDevice:
		return ebpf.AttachCGroupDevice
	case ebpf.CGroupSysctl:
		return ebpf.AttachCGroupSysctl
	default:
		return c.attach
	}
}

func isTrace(t ebpf.ProgramType) bool {
	switch t {
	case ebpf.Tracing, ebpf.RawTracepoint, ebpf.RawTracepointWritable, ebpf.TracePoint, ebpf.Kprobe, ebpf.LSM:
		return true
	default:
		return false
	}
}

// pick returns the programs of an instance that fit a hook. named, when set,
// must be one of them.
func (e *Engine) pick(instance, hook, named string, direction Direction) ([]candidate, error) {
	all, err := e.candidates(instance)
	if err != nil {
		return nil, err
	}
	var fitting []candidate
	for _, c := range all {
		if named != "" && c.name != named {
			continue
		}
		if c.fits(hook, direction) {
			fitting = append(fitting, c)
		}
	}
	if len(fitting) > 0 {
		return fitting, nil
	}
	return nil, noneFits(instance, hook, named, direction, all)
}

func noneFits(instance, hook, named string, direction Direction, all []candidate) error {
	var have []string
	known := false
	for _, c := range all {
		known = known || c.name == named
		have = append(have, fmt.Sprintf("%s (%s)", c.name, programType(c.typ)))
	}
	if named != "" && !known {
		return fault.New(fault.ErrNotFound, "%q has no program %q", instance, named).Hint("its programs: %s", join(have))
	}
	where := hook
	if direction != "" && direction != Both {
		where += " " + string(direction)
	}
	if named != "" {
		instance = instance + "/" + named
	}
	return fault.New(fault.ErrUsage, "%q has no program for %s", instance, where).Hint("its programs: %s", join(have))
}

// one narrows candidates for a device to a single program: the variant that
// fits the device's frames.
func one(instance string, fitting []candidate, dev device, notes *[]string) (candidate, error) {
	byName := map[string]candidate{}
	for _, c := range fitting {
		byName[c.name] = c
	}
	var choice []candidate
	for _, c := range fitting {
		base, isLayer3 := strings.CutSuffix(c.name, layer3Suffix)
		_, hasBase := byName[base]
		_, hasLayer3 := byName[c.name+layer3Suffix]
		switch {
		case isLayer3 && hasBase && dev.ethernet, hasLayer3 && !dev.ethernet:
			continue
		case !dev.ethernet && !isLayer3:
			*notes = append(*notes, fmt.Sprintf("packets of %s have no Ethernet header: %s sees them from the IP header on", dev.DevName, c.name))
		}
		choice = append(choice, c)
	}
	if len(choice) == 1 {
		return choice[0], nil
	}
	var names []string
	for _, c := range choice {
		names = append(names, c.name)
	}
	return candidate{}, fault.New(fault.ErrUsage, "%q has several programs that fit", instance).Hint("choose one with --prog: %s", join(names))
}
