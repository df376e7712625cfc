package datapath

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"bpfnet/internal/fault"
	"bpfnet/internal/probe"
)

// tcxMissing says why a clsact filter was taken.
const tcxMissing = "tcx: this kernel doesn't have it (Linux 6.6 does)"

// noTCX says that the kernel is known not to have TCX.
func noTCX() bool { return errors.Is(probe.Feature("tcx"), probe.ErrNotSupported) }

// attachTC is the ladder of tc: a TCX link, then a clsact filter.
func (e *Engine) attachTC(req AttachRequest, s spot, prog *ebpf.Program) (Attachment, error) {
	anchor, err := e.anchor(req.Position, s)
	if err != nil {
		return Attachment{}, err
	}
	l, err := link.AttachTCX(link.TCXOptions{
		Interface: int(s.at.IfIndex), Program: prog, Attach: tcxAttach(s.hook), Anchor: anchor,
	})
	switch {
	case err == nil:
		return e.pinLink(req, s, l, nil)
	case errors.Is(err, link.ErrNotSupported):
		return e.attachClsact(req, s, prog, []string{tcxMissing})
	case errors.Is(err, unix.ENOENT):
		return Attachment{}, fault.New(fault.ErrNotFound, "%s: the program to be next to isn't there: %w", s.hook, rootCause(err)).
			Hint("bpfnet net show --dev %s   lists what is", s.at.DevName)
	case errors.Is(err, unix.EEXIST):
		return Attachment{}, fault.New(fault.ErrConflict, "%s: another link holds this program there: %w", s.hook, rootCause(err)).
			Hint("if the interface came from another network namespace: bpfnet detach tc %s", req.Name)
	default:
		return Attachment{}, fmt.Errorf("%s: %w", s.hook, probe.Explain(probe.OpAttachTCX, err))
	}
}

func tcxAttach(hook string) ebpf.AttachType {
	if hookDirection(hook) == Ingress {
		return ebpf.AttachTCXIngress
	}
	return ebpf.AttachTCXEgress
}

// anchor translates where among the programs of a hook a new one goes.
func (e *Engine) anchor(p Position, s spot) (link.Anchor, error) {
	switch {
	case p.First:
		return link.Head(), nil
	case p.Before != "":
		id, err := e.neighbour(p.Before, s)
		return link.BeforeProgramByID(id), err
	case p.After != "":
		id, err := e.neighbour(p.After, s)
		return link.AfterProgramByID(id), err
	default:
		return link.Tail(), nil
	}
}

// neighbour finds the program on the same hook that an instance name or "id:N"
// means.
func (e *Engine) neighbour(ref string, s spot) (ebpf.ProgramID, error) {
	if number, ok := strings.CutPrefix(ref, "id:"); ok {
		id, err := strconv.ParseUint(number, 10, 32)
		if err != nil {
			return 0, fault.New(fault.ErrUsage, "position %q: want NAME or id:N", ref)
		}
		return ebpf.ProgramID(id), nil
	}
	if err := e.mustExist(ref); err != nil {
		return 0, err
	}
	docs, err := e.attachments(ref)
	if err != nil {
		return 0, err
	}
	for _, a := range docs {
		if hookGroup(a.Hook) == "tc" && hookDirection(a.Hook) == hookDirection(s.hook) && !a.Defunct && *a.IfIndex == s.at.IfIndex && *a.NetNS == s.at.NetNS {
			return ebpf.ProgramID(a.ProgID), nil
		}
	}
	return 0, fault.New(fault.ErrNotFound, "%q is not attached to %s of %s", ref, s.hook, s.at.DevName)
}

// checkPosition refuses a request for a position that an attachment doesn't
// have: the kernel can't move it without a moment in which it is missing.
func (e *Engine) checkPosition(req AttachRequest, a Attachment) error {
	if req.Position == (Position{}) || a.Mechanism != mechanismLink {
		return nil
	}
	order, err := link.QueryPrograms(link.QueryOptions{Target: int(*a.IfIndex), Attach: tcxAttach(a.Hook)})
	if err != nil {
		return fmt.Errorf("read the order of %s: %w", a.Hook, probe.Explain(probe.OpAttachTCX, err))
	}
	ids := make([]ebpf.ProgramID, len(order.Programs))
	at := -1
	for i, p := range order.Programs {
		ids[i] = p.ID
		if ObjectID(p.ID) == a.ProgID {
			at = i
		}
	}
	ok, err := e.inPosition(req, a, ids, at)
	if err != nil || ok {
		return err
	}
	return fault.New(fault.ErrConflict, "it is attached already, at place %d of %d", at+1, len(ids)).
		Hint("detach it first: bpfnet detach tc %s --dev %s", req.Name, *a.DevName)
}

func (e *Engine) inPosition(req AttachRequest, a Attachment, ids []ebpf.ProgramID, at int) (bool, error) {
	s := spot{hook: a.Hook, at: target{DevName: *a.DevName, IfIndex: *a.IfIndex, NetNS: *a.NetNS}}
	index := func(ref string) (int, error) {
		id, err := e.neighbour(ref, s)
		for i, other := range ids {
			if other == id {
				return i, err
			}
		}
		return -1, err
	}
	switch p := req.Position; {
	case p.First:
		return at == 0, nil
	case p.Last:
		return at == len(ids)-1, nil
	case p.Before != "":
		other, err := index(p.Before)
		return at < other, err
	default:
		other, err := index(p.After)
		return at > other && other >= 0, err
	}
}
