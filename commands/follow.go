package commands

import (
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"bpfnet/internal/datapath"
	"bpfnet/internal/follow"
	"bpfnet/internal/traffic"
	"bpfnet/output"
)

// followDoc is what happened to an interface that attach --follow is concerned with.
type followDoc struct {
	Schema    string          `json:"schema"`
	Time      time.Time       `json:"time"`
	Event     string          `json:"event"`
	Name      string          `json:"name"`
	DevName   *string         `json:"devname"`
	IfIndex   *uint32         `json:"ifindex"`
	Namespace *string         `json:"namespace"`
	Pod       *string         `json:"pod"`
	PodUID    *string         `json:"pod_uid"`
	TookUS    *int64          `json:"took_us"`
	Traffic   []traffic.Entry `json:"traffic"`
	Error     *string         `json:"error"`
}

func newFollowDoc(name string, e follow.Event) followDoc {
	d := followDoc{Schema: "bpfnet.follow/v1", Time: e.Time.UTC(), Event: string(e.Kind), Name: name, Traffic: e.Traffic}
	if e.DevName != "" {
		d.DevName = &e.DevName
	}
	if e.IfIndex != 0 {
		d.IfIndex = &e.IfIndex
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
	stream := p.Stream()
	attached := map[uint32]bool{}
	err := b.Follow(c.Context, request, func(event follow.Event) error {
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
		if err := stream.Add(document, doc.line); err != nil {
			return err
		}
		return stream.Flush()
	})
	if err == nil && len(attached) > 0 {
		e.note(c, "note: %q stays attached to %d interfaces; bpfnet detach tc %s takes it off", request.Name, len(attached), request.Name)
	}
	return err
}

func (d followDoc) line() string {
	pod := optional(d.PodUID)
	if d.Pod != nil {
		pod = optional(d.Namespace) + "/" + *d.Pod
	}
	line := fmt.Sprintf("%s  %-10s  %-15s  %s", d.Time.Local().Format("15:04:05.000"), d.Event, optional(d.DevName), pod)
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
