package flow

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"bpfnet/bpf"
	"bpfnet/internal/datapath"
	"bpfnet/internal/endpoint"
	"bpfnet/internal/fault"
	"bpfnet/internal/probe"
)

// Polling is the mechanism that needs no program.
const Polling = "sock_diag"

// Kernel opens and starts programs that count; *datapath.Engine implements it.
type Kernel interface {
	Open(ctx context.Context, instance string) (datapath.Objects, error)
	Start(context.Context, datapath.LoadRequest) (datapath.Objects, error)
	Attachments(ctx context.Context, instance string) ([]datapath.Attachment, error)
	InNetNS(fn func() error) error
}

// Open opens a loaded instance of flows, or begins to count until the Sampler is closed.
// The strings are for people.
// ErrConflict: the instance counts by another mechanism than the one that is asked for.
func Open(ctx context.Context, kernel Kernel, req Request) (Sampler, []string, error) {
	sampler, notes, err := openUntranslated(ctx, kernel, req)
	if err != nil {
		return nil, notes, err
	}
	sampler, more := translate(sampler, kernel)
	return sampler, append(notes, more...), nil
}

func openUntranslated(ctx context.Context, kernel Kernel, req Request) (Sampler, []string, error) {
	if req.Backend == Polling {
		return OpenDiag(req.Filter)
	}
	reader, notes, err := openLoaded(ctx, kernel, req)
	if !errors.Is(err, fault.ErrNotFound) {
		return reader, notes, err
	}
	reader, notes, err = startPrivate(ctx, kernel, req)
	if err == nil || req.Backend != "" || !isLacking(err) {
		return reader, append([]string{begins(req.Instance)}, notes...), err
	}
	polled, notes, polling := OpenDiag(req.Filter)
	if polling != nil {
		return nil, nil, fault.Join(err, polling)
	}
	return polled, append([]string{begins(req.Instance), fmt.Sprintf("%v: sockets are looked at from time to time instead", err)}, notes...), nil
}

// begins is what people should know where no instance is loaded.
func begins(instance string) string {
	return instance + " isn't loaded: counting begins now, and ends with this command"
}

// isLacking says whether the kernel hasn't got what a mechanism needs. Older verifiers
// refuse what they don't know.
func isLacking(err error) bool {
	return errors.Is(err, fault.ErrUnsupported) || errors.Is(err, fault.ErrRejected)
}

func openLoaded(ctx context.Context, kernel Kernel, req Request) (*Reader, []string, error) {
	objects, err := kernel.Open(ctx, req.Instance)
	if err != nil {
		return nil, nil, err
	}
	r, err := newReader(objects)
	if err != nil {
		return nil, nil, err
	}
	if mechanism := mechanismOf(objects.Programs()); req.Backend != "" && req.Backend != mechanism {
		err := fault.New(fault.ErrConflict, "%q counts by %s", req.Instance, mechanism).Hint("bpfnet unload %s --detach", req.Instance)
		return nil, nil, fault.Join(err, r.Close())
	}
	attachments, err := kernel.Attachments(ctx, req.Instance)
	if err != nil {
		return nil, nil, fault.Join(err, r.Close())
	}
	const alone = 2 // flows_seed and flows_dump
	var notes []string
	if n := len(attachments); n > 0 && n < len(objects.Programs())-alone {
		notes = append(notes, fmt.Sprintf("%s is attached in part, so not all is counted; bpfnet attach trace %s", req.Instance, req.Instance))
	}
	return r, notes, nil
}

func startPrivate(ctx context.Context, kernel Kernel, req Request) (*Reader, []string, error) {
	if err := req.Filter.check(); err != nil {
		return nil, nil, err
	}
	set, err := req.Filter.parameters()
	if err != nil {
		return nil, nil, err
	}
	objects, err := kernel.Start(ctx, datapath.LoadRequest{Source: Program, Set: set, Mechanism: req.Backend})
	if err != nil {
		return nil, nil, err
	}
	r, err := newReader(objects)
	return r, objects.Notes(), err
}

// check returns ErrNotFound if a process isn't there, whose flows nobody will see.
func (f Filter) check() error {
	for _, pid := range f.PIDs {
		leader, err := endpoint.Leader(int(pid))
		if err != nil {
			return err
		}
		if leader != int(pid) {
			return fault.New(fault.ErrNotFound, "no process %d", pid).Hint("it is a thread of %d", leader)
		}
	}
	return nil
}

// parameters are those of the program for as much of the filter as it can apply: one of
// each kind.
func (f Filter) parameters() (map[string]string, error) {
	set := map[string]string{}
	if len(f.PIDs) == 1 {
		set[bpf.FlowPID] = strconv.FormatUint(uint64(f.PIDs[0]), 10)
	}
	if len(f.Ports) == 1 {
		set[bpf.FlowPort] = strconv.FormatUint(uint64(f.Ports[0]), 10)
	}
	if len(f.Transports) == 1 {
		if number, ok := protocolOf(f.Transports[0]); ok {
			set[bpf.FlowProtocol] = strconv.Itoa(number)
		}
	}
	if len(f.Cgroups) == 1 {
		level, err := levelOf(f.Cgroups[0])
		if err != nil {
			return nil, err
		}
		set[bpf.FlowCgroup] = strconv.FormatUint(f.Cgroups[0], 10)
		set[bpf.FlowCgroupLevel] = strconv.Itoa(level)
	}
	return set, nil
}

// errFound ends a walk.
var errFound = errors.New("found")

// levelOf is how far a cgroup is below the root.
func levelOf(id uint64) (level int, err error) {
	root, err := probe.Cgroup2Mount()
	if err != nil {
		return 0, err
	}
	err = filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		var stat unix.Stat_t
		if err != nil || !entry.IsDir() || unix.Stat(path, &stat) != nil || stat.Ino != id {
			return nil // those that go meanwhile aren't it
		}
		if below := strings.TrimPrefix(strings.TrimPrefix(path, root), "/"); below != "" {
			level = 1 + strings.Count(below, "/")
		}
		return errFound
	})
	if !errors.Is(err, errFound) {
		return 0, fault.New(fault.ErrNotFound, "no cgroup has the id %d", id)
	}
	return level, nil
}

// mechanismOf tells the mechanism by the programs that are loaded.
func mechanismOf(programs []string) string {
	switch {
	case slices.Contains(programs, "flows_inet_sendmsg_return"):
		return "kprobe"
	case slices.Contains(programs, "flows_inet_sendmsg"):
		return "fexit"
	}
	return "tp_btf"
}
