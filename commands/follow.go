package commands

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"bpfnet/internal/datapath"
	"bpfnet/internal/fault"
	"bpfnet/internal/follow"
	"bpfnet/internal/traffic"
	"bpfnet/output"
)

func followFlag() *cli.BoolFlag {
	return &cli.BoolFlag{Name: "follow", Usage: "with --" + allPods + ": go on, attach to the Pods that come, and tell the last counters of those that go"}
}

// checkFollow refuses what --follow doesn't go with.
func checkFollow(c *cli.Context) error {
	switch {
	case !c.Bool("follow"):
		return nil
	case !c.Bool(allPods):
		return usage(c, "--follow is for --%s", allPods)
	case c.Bool("dry-run"):
		return usage(c, "--follow and --dry-run exclude each other; without --follow it is said what would be attached to now")
	}
	return nil
}

// followDoc is what happened to an interface that attach --follow is concerned with.
type followDoc struct {
	Schema    string          `json:"schema"`
	Time      time.Time       `json:"time"`
	Event     string          `json:"event"`
	Name      string          `json:"name"`
	DevName   *string         `json:"devname"`
	IfIndex   uint32          `json:"ifindex"`
	Namespace *string         `json:"namespace"`
	Pod       *string         `json:"pod"`
	PodUID    *string         `json:"pod_uid"`
	TookUS    *int64          `json:"took_us"`
	Traffic   []traffic.Entry `json:"traffic"`
	Error     *string         `json:"error"`
}

func newFollowDoc(name string, e follow.Event) followDoc {
	d := followDoc{Schema: "bpfnet.follow/v1", Time: e.Time.UTC(), Event: string(e.Kind), Name: name, IfIndex: e.IfIndex, Traffic: e.Traffic}
	if e.DevName != "" {
		d.DevName = &e.DevName
	}
	if e.Pod != nil {
		d.Namespace, d.Pod, d.PodUID = e.Pod.Namespace, e.Pod.Name, &e.Pod.UID
	}
	if e.Took > 0 {
		took := e.Took.Microseconds()
		d.TookUS = &took
	}
	if e.Err != nil {
		text := e.Err.Error()
		d.Error = &text
	}
	return d
}

// follow attaches to the Pods that there are and to those that come, until it is
// interrupted.
func (e *Env) follow(c *cli.Context, p *output.Printer, b Backend, request datapath.AttachRequest) error {
	// Its notes tell which Pods are left out. There may be some to attach to later.
	now, err := e.podDevices(c, b)
	if err != nil && !errors.Is(err, fault.ErrNotFound) {
		return err
	}
	if err := attachable(c.Context, b, now.attachRequests(request)); err != nil {
		return err
	}
	stream := p.Stream()
	attached := map[uint32]bool{}
	ctx, stop := e.whileRead(c.Context, 0)
	defer stop()
	err = b.Follow(ctx, request, func(event follow.Event) error {
		switch event.Kind {
		case follow.Attached, follow.Adopted:
			attached[event.IfIndex] = true
		case follow.Gone, follow.Detached:
			delete(attached, event.IfIndex)
		}
		doc := newFollowDoc(request.Name, event)
		document, err := output.Marshal(doc)
		if err != nil {
			return err
		}
		if err := stream.Add(document, func() string { return doc.line(event.Time) }); err != nil {
			return err
		}
		return stream.Flush()
	})
	if err == nil && len(attached) > 0 {
		e.note(c, "note: %q stays attached to %s; bpfnet detach tc %s takes it off", request.Name, counted(len(attached), "interface"), request.Name)
	}
	return err
}

// mostTried is to how many interfaces it is tried to attach before the reason why it
// can't be is taken for one that all have.
const mostTried = 3

// attachable returns an error for what can be attached nowhere, such as a program of
// another hook.
func attachable(ctx context.Context, b Backend, requests []datapath.AttachRequest) (first error) {
	for _, r := range requests[:min(len(requests), mostTried)] {
		r.DryRun = true
		_, err := b.Attach(ctx, r)
		if err == nil {
			return nil
		}
		first = cmp.Or(first, err)
	}
	return first
}

func (d followDoc) line(at time.Time) string {
	line := fmt.Sprintf("%s  %-10s  %-15s  %s", at.Format("15:04:05.000"), d.Event, cmp.Or(optional(d.DevName), "-"), cmp.Or(podName(d.Namespace, d.Pod, d.PodUID), "-"))
	var total traffic.Counters
	for _, entry := range d.Traffic {
		total.Add(entry.Counters)
	}
	switch {
	case d.Error != nil:
		line += "  " + *d.Error
	case d.TookUS != nil:
		line += fmt.Sprintf("  after %d ms", (*d.TookUS+500)/1000)
	case d.Traffic != nil:
		line += fmt.Sprintf("  tx %s, rx %s", output.Bytes(total.TransmitBytes), output.Bytes(total.ReceiveBytes))
	}
	return line
}
