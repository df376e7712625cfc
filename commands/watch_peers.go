package commands

import (
	"context"
	"maps"
	"net"
	"strconv"
	"time"

	"github.com/urfave/cli/v2"

	"bpfnet/internal/peers"
	"bpfnet/internal/traffic"
	"bpfnet/output"
)

func watchPeersCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:  "peers",
		Usage: "whom each Pod address contacts, and whether it was answered, remembered by peers",
		Description: "The first document has all that are remembered, each later one those that there was news of since the one before. " +
			"Attempts are connections, or flows of packets, that the Pod began; what it answers to others is none.",
		Flags: append(append(watchFlags(peersProgram, peers.DefaultSort, peers.SortFields()), placeFlags("Pods")...),
			&cli.StringFlag{Name: "peer", Usage: "only peers in the `PREFIX`; the others count as others"},
			&cli.BoolFlag{Name: "failed", Usage: "only peers that haven't answered all attempts; the others count as others"},
		),
		Action: func(c *cli.Context) error {
			view, err := peerView(c)
			if err != nil {
				return err
			}
			return env.watchPlaces(c, view.Point, &view.Match, func(b Backend, p *output.Printer) (stream, error) {
				return env.peerStream(c, b, p, c.String("instance"), view)
			})
		},
	}
}

func peerView(c *cli.Context) (view peers.View, err error) {
	view = peers.View{
		Point: traffic.Point(c.String("observe")), Sort: c.String("sort"), Limit: c.Int("limit"), Device: c.String("dev"), Failed: c.Bool("failed"),
	}
	if err := view.Check(); err != nil {
		return view, err
	}
	if view.Address, err = prefixOf(c, "address"); err != nil {
		return view, err
	}
	view.Peer, err = prefixOf(c, "peer")
	return view, err
}

// peerStream shows the peers of a loaded instance.
func (e *Env) peerStream(c *cli.Context, b Backend, p *output.Printer, instance string, view peers.View) (stream, error) {
	samples, err := e.peerSamples(c, b, instance, view)
	if err != nil {
		return stream{}, err
	}
	return stream{
		sample: e.noting(c, samples.take),
		show: func() error {
			doc := samples.document()
			return p.Event(doc, func() output.Table { return peerTable(doc) })
		},
	}, nil
}

// peerSamples makes documents of the peers of a loaded instance.
type peerSamples struct {
	sampler peers.Sampler
	watch   peers.Watch
	notes   *sampleNotes
}

func (e *Env) peerSamples(c *cli.Context, b Backend, instance string, view peers.View) (*peerSamples, error) {
	sampler, err := b.Peers(instance)
	if err != nil {
		return nil, err
	}
	notes := e.sampleNotes(c, b, instance, view.Point)
	view.Owner = notes.owners.of
	return &peerSamples{sampler: sampler, watch: peers.Watch{View: view}, notes: notes}, nil
}

// take takes a sample for the next document, and returns what people should know.
func (s *peerSamples) take(ctx context.Context) ([]string, error) {
	next, err := s.sampler.Sample(ctx)
	if err != nil {
		return nil, notLoaded(err, peersProgram)
	}
	notes := s.notes.of(ctx, maps.Keys(next.Endpoints), next.Attached)
	s.watch.Bypassed = s.notes.bypassed
	s.watch.Take(next)
	return notes, nil
}

func (s *peerSamples) document() peers.Document { return s.watch.Document() }

// put implements sampleSource.
func (s *peerSamples) put(all *samples) {
	doc := s.document()
	all.peers = &doc
}

func peerTable(d peers.Document) output.Table {
	t := output.Table{Header: []string{"pod", "container", "address", "peer", "transport", "attempts", "answers", "refusals", "first seen", "last seen"}}
	for _, p := range d.Peers {
		t.Rows = append(t.Rows, []string{
			podName(p.Namespace, p.Pod, p.PodUID), podContainer(p.Who), p.Address.String(), remoteText(p.Peer), p.Transport,
			newCell(p.Attempts, p.NewAttempts), newCell(p.Answers, p.NewAnswers), newCell(p.Refusals, p.NewRefusals),
			ago(d.Time, p.FirstSeen), ago(d.Time, p.LastSeen),
		})
	}
	for _, row := range []struct {
		name  string
		count uint64
	}{{"others", uint64(d.Others.Peers)}, {"lost", d.Loss.Peers}} {
		if row.count > 0 {
			t.Rows = append(t.Rows, []string{row.name, "", "", output.Count(row.count), "", "", "", "", "", ""})
		}
	}
	return t
}

func ago(now, then time.Time) string {
	return max(0, now.Sub(then)).Truncate(time.Second).String() + " ago"
}

func remoteText(r peers.Remote) string {
	if r.Port == nil {
		return r.Address.String()
	}
	return net.JoinHostPort(r.Address.String(), strconv.Itoa(int(*r.Port)))
}

// newCell is a counter, and by how much it grew if it did.
func newCell(count uint64, grown *uint64) string {
	text := output.Count(count)
	if pointed(grown) > 0 {
		text += " +" + output.Count(*grown)
	}
	return text
}
