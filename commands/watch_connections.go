package commands

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/urfave/cli/v2"

	"bpfnet/internal/fault"
	"bpfnet/internal/flow"
	"bpfnet/internal/traffic"
	"bpfnet/output"
)

func watchConnectionsCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:  "connections",
		Usage: "TCP connections that are opened, closed and that fail: whose, with whom, how long, how much, and why they ended",
		Description: "An event a line, until it is interrupted: what happens from now on, of all network namespaces. " +
			"It reads the program flows, which it starts for itself if that isn't loaded.",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "failed", Usage: "only those that couldn't be opened"},
			&cli.StringFlag{Name: "instance", Value: flowsProgram, Usage: "loaded instance `NAME`; if there is none, it watches for itself"},
			&cli.BoolFlag{Name: "since-load", Usage: "what the instance remembers from before, too"},
			&cli.Uint64Flag{Name: "count", DefaultText: noLimit, Usage: "end after `N` events"},
			&cli.DurationFlag{Name: "for", DefaultText: noLimit, Usage: "end after `TIME`"},
			&cli.UintFlag{Name: "pid", DefaultText: "all", Usage: "only those of the process `N`"},
			&cli.StringFlag{Name: "container", Usage: "only those of the container `ID|NAME`"},
			&cli.StringFlag{Name: "pod", Usage: "only those of the Pod `NAMESPACE/NAME|UID`"},
			&cli.StringFlag{Name: "cgroup", Usage: "only those of the cgroup `DIR` and those below it"},
			&cli.StringFlag{Name: "port", Usage: "only the local or peer's `PORTS`, with commas between them"},
			&cli.StringFlag{Name: "peer", Usage: "only peers in the `PREFIX`"},
			&cli.BoolFlag{Name: "names", Usage: "show peers by the names that were asked for, as seen by dns, whose answers one process reads at a time"},
			&cli.BoolFlag{Name: "steal", Usage: "with --names: read answers although another process does"},
			&cli.BoolFlag{Name: "strict", Usage: "end with exit 11 when something is lost"},
		},
		Action: func(c *cli.Context) error {
			w := &connectionWatch{env: env, c: c, most: c.Uint64("count")}
			whose, err := w.readFlags()
			if err != nil {
				return err
			}
			p, b, err := env.open(c)
			if err != nil {
				return err
			}
			defer b.Close()
			if c.Bool("names") {
				if w.names, err = env.learnNames(c, b); err != nil {
					return err
				}
				defer w.names.close()
				w.view.Name = w.names.of
			}
			if err := w.open(b, whose); err != nil {
				return err
			}
			defer w.source.Close()
			w.stream = p.Stream()
			return w.run()
		},
	}
}

// connectionWatch shows what happens to connections.
type connectionWatch struct {
	env     *Env
	c       *cli.Context
	request flow.EventsRequest
	view    flow.View
	source  flow.EventSource
	news    *instanceNews // nil: it watches for itself
	owners  *podOwners
	names   *peerNames // nil: peers have none
	teller  *flow.Teller
	stream  *output.Stream
	most    uint64 // how many to show; 0: all
	shown   uint64
	loss    flow.EventLoss
	told    struct { // by the last note
		loss flow.EventLoss
		at   time.Time
	}
}

func (w *connectionWatch) readFlags() (whose selection, err error) {
	c := w.c
	if err := args(c); err != nil {
		return whose, err
	}
	if err := checkEventFlags(c); err != nil {
		return whose, err
	}
	if c.Bool("steal") && !c.Bool("names") {
		return whose, usage(c, "--steal is for --names")
	}
	if whose, err = selectOne(c, "pid", "container", "pod", "cgroup"); err != nil {
		return whose, err
	}
	if w.view.Peer, err = prefixOf(c, "peer"); err != nil {
		return whose, err
	}
	w.view.Filter, err = readFlowFilter(c)
	w.request = flow.EventsRequest{Instance: c.String("instance"), Filter: w.view.Filter, SinceLoad: c.Bool("since-load"), Failed: c.Bool("failed")}
	return whose, err
}

func (w *connectionWatch) open(b Backend, whose selection) (err error) {
	if err := w.env.flowsOf(w.c, b, whose, &w.request.Filter, &w.view); err != nil {
		return err
	}
	if w.view.Boot, err = w.env.BootTime(); err != nil {
		return err
	}
	// Who there is is looked for before there are events, which don't wait.
	w.owners = newPodOwners(b.Endpoints())
	w.find(slices.Values([]traffic.Key{{Point: traffic.Cgroup}}))
	w.view.Executable, w.view.Users, w.view.Owner = w.env.Executable, w.env.users(), w.owners.Cgroup
	w.teller = flow.NewTeller(w.view, w.c.Bool("failed"))
	w.news = w.env.flowNews(w.c, b, w.request.Instance)
	source, notes, err := b.ConnectionEvents(w.c.Context, w.request)
	if err != nil {
		return err
	}
	w.env.notes(w.c, notes)
	w.source = source
	return nil
}

// eventInterval is the time between two reads of events.
const eventInterval = 50 * time.Millisecond

// run shows events until there were enough, the time is over, the command is interrupted
// or nobody reads its output any more.
func (w *connectionWatch) run() error {
	ctx, stop := w.env.whileRead(w.c.Context, w.c.Duration("for"))
	defer stop()
	ticker := time.NewTicker(eventInterval)
	defer ticker.Stop()
	for last := false; ; {
		if err := w.show(last); err != nil || last || w.enough() {
			return cmp.Or(err, w.noteLoss(true))
		}
		select {
		case <-ctx.Done():
			last = true
		case <-ticker.C:
		}
	}
}

func (w *connectionWatch) enough() bool { return w.most > 0 && w.shown == w.most }

// show writes what has happened, all at once.
func (w *connectionWatch) show(last bool) error {
	events, loss, err := w.source.Read(last)
	if err != nil {
		return err
	}
	w.loss = loss
	events = w.teller.Fit(events)
	switch {
	case w.names == nil:
	case len(events) > 0:
		w.names.catchUp()
	default:
		w.names.tell()
	}
	w.find(cgroupsOf(firstRows(events)))
	if w.most > 0 {
		events = events[:min(w.most-w.shown, uint64(len(events)))]
	}
	w.shown += uint64(len(events))
	columns, _, _ := w.env.Terminal()
	for i := range events {
		doc := w.teller.Document(&events[i], loss)
		text, err := json.Marshal(&doc)
		if err != nil {
			return err
		}
		if err := w.stream.AddParts(text, columns, func() []string { return connectionLine(&doc, events[i].Time) }); err != nil {
			return err
		}
	}
	if err := w.stream.Flush(); err != nil {
		return err
	}
	if err := w.noteLoss(false); err != nil || last {
		return err
	}
	notes, err := w.news.look(context.WithoutCancel(w.c.Context)) // an end is no error
	w.env.notes(w.c, notes)
	return err
}

// noteLoss tells people of losses, now and then and in the end, or is an error if there
// mustn't be any.
func (w *connectionWatch) noteLoss(last bool) error {
	switch loss := w.loss; {
	case loss == w.told.loss:
	case w.c.Bool("strict"):
		return fault.New(fault.ErrLossy, "watch connections: lost: %s", connectionLoss(loss))
	case last || time.Since(w.told.at) >= lossInterval:
		w.told.loss, w.told.at = loss, time.Now()
		w.env.note(w.c, "note: lost so far: %s", connectionLoss(loss))
	}
	return nil
}

func connectionLoss(l flow.EventLoss) string {
	return fmt.Sprintf("records, because they weren't read fast enough: %d, sockets that found no room: %d, calls that weren't seen: %d", l.Events, l.MapFull, l.Missed)
}

// find looks for the owners of events.
func (w *connectionWatch) find(keys iter.Seq[traffic.Key]) {
	w.env.notes(w.c, w.owners.find(w.c.Context, keys))
}

// firstRows are those of the processes that used connections first.
func firstRows(events []flow.Event) []flow.Row {
	rows := make([]flow.Row, len(events))
	for i, e := range events {
		rows[i] = e.Rows[0]
	}
	return rows
}

// connectionLine is the parts of a line about an event, with what may be long at its end.
func connectionLine(d *flow.EventDocument, at time.Time) []string {
	arrow := map[string]string{"outward": "->", "inward": "<-", "": "--"}[optional(d.Direction)]
	moved := ""
	if d.IO != nil {
		moved = output.Bytes(d.IO.TransmitBytes) + "/" + output.Bytes(d.IO.ReceiveBytes)
	}
	peer, nat := peerOf(d.Network)
	return []string{
		at.Format("15:04:05.000"), fmt.Sprintf("%s %-10s", d.Event, cmp.Or(processText(d.Process), "-")),
		optional(d.Reason), optional(d.ClosedBy), durationText(d.DurationSeconds), moved,
		addressText(d.Network.Local), arrow + " " + peer, nat,
		podName(d.K8s.Namespace, d.K8s.Pod, d.K8s.PodUID), containerText(d.Container),
	}
}

// durationText is a time in three digits.
func durationText(seconds *float64) string {
	if seconds == nil {
		return ""
	}
	d, unit := time.Duration(*seconds*float64(time.Second)), time.Microsecond
	for d/unit >= 1000 {
		unit *= 10
	}
	return d.Round(unit).String()
}
