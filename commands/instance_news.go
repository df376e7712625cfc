package commands

import (
	"context"
	"errors"
	"time"

	"github.com/urfave/cli/v2"

	"bpfnet/internal/datapath"
	"bpfnet/internal/fault"
)

// attachedNews tells when an instance that is watched begins or ceases to be attached.
type attachedNews struct {
	instance string
	how      string // to attach it, in a note; may be ""
	detached bool   // as was told
}

// of is what people should know now.
func (n *attachedNews) of(attached bool) []string {
	if attached != n.detached {
		return nil
	}
	n.detached = !attached
	switch {
	case attached:
		return []string{n.instance + " is attached now"}
	case n.how != "":
		return []string{n.instance + " is not attached, so nothing counts; " + n.how}
	}
	return []string{n.instance + " is not attached, so nothing counts"}
}

// instanceNews tells what becomes of an instance while it is watched through what was
// opened once.
type instanceNews struct {
	attachedNews
	attachments func(context.Context) ([]datapath.Attachment, error)
	programs    map[string]datapath.ObjectID // that were attached
	looked      time.Time
}

// newsInterval is the least time between two looks.
const newsInterval = time.Second

func newInstanceNews(b Backend, instance, how string) *instanceNews {
	return &instanceNews{
		attachedNews: attachedNews{instance: instance, how: how}, programs: map[string]datapath.ObjectID{},
		attachments: func(ctx context.Context) ([]datapath.Attachment, error) { return b.Attachments(ctx, instance) },
	}
}

// flowNews is nil if no such instance of flows is loaded, so that a watch counts for itself.
func (e *Env) flowNews(c *cli.Context, b Backend, instance string) *instanceNews {
	n := newInstanceNews(b, instance, "bpfnet attach trace "+instance)
	if _, err := n.attachments(c.Context); errors.Is(err, fault.ErrNotFound) {
		return nil
	}
	return n
}

// look returns what people should know, nothing of nil. ErrNotFound says that the instance
// was unloaded, or that another one has its name now.
func (n *instanceNews) look(ctx context.Context) ([]string, error) {
	if n == nil || time.Since(n.looked) < newsInterval {
		return nil, nil
	}
	n.looked = time.Now()
	attachments, err := n.attachments(ctx)
	if err != nil {
		return nil, err
	}
	attached := false
	for _, a := range attachments {
		if before, known := n.programs[a.Program]; known && before != a.ProgID {
			return nil, fault.New(fault.ErrNotFound, "%q was unloaded, and another one was loaded", n.instance)
		}
		n.programs[a.Program] = a.ProgID
		attached = attached || !a.Defunct
	}
	return n.of(attached), nil
}
