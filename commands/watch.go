package commands

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"bpfnet/internal/counter"
	"bpfnet/internal/fault"
	"bpfnet/internal/traffic"
	"bpfnet/output"
)

// The built-in programs that watch shows.
const (
	dropsProgram = "drops"
	peersProgram = "peers"
	podTraffic   = "pod-traffic"
	xdpCounter   = "xdp-counter"
)

// watchInterval is the time between two ticks unless --interval says otherwise.
const watchInterval = 2 * time.Second

func watchCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:  "watch",
		Usage: "show what loaded programs count, again and again, and what rules notice",
		Description: "Of counters the first document comes at once, without rates (null); each later one has the rates since the one before. " +
			"--once ends after the first; with --interval it waits that long first and shows rates.",
		Subcommands: []*cli.Command{watchPodsCommand(env), watchPeersCommand(env), watchFlowsCommand(env), watchConnectionsCommand(env), watchCountersCommand(env), watchDropsCommand(env), watchAlertsCommand(env), watchDNSCommand(env)},
	}
}

func watchPodsCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:  "pods",
		Usage: "bytes and packets of each Pod address, counted by pod-traffic",
		Flags: append(watchFlags(podTraffic, traffic.DefaultSort, traffic.SortFields()), placeFlags("Pods")...),
		Action: func(c *cli.Context) error {
			view, err := podView(c)
			if err != nil {
				return err
			}
			return env.watchPlaces(c, view.Point, &view.Match, func(b Backend, p *output.Printer) (stream, error) {
				return env.podStream(c, b, p, c.String("instance"), view)
			})
		},
	}
}

func watchCountersCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:  "counters",
		Usage: "packets and bytes of each interface by protocol, counted by xdp-counter",
		Flags: append(watchFlags(xdpCounter, counter.DefaultSort, counter.SortFields()),
			&cli.StringFlag{Name: "dev", Usage: "only the interface `NAME`; the others count as others"},
			podFlag("only "+hostSide), containerFlag("only "+hostSide),
		),
		Action: func(c *cli.Context) error {
			view := counter.View{Sort: c.String("sort"), Limit: c.Int("limit"), Device: c.String("dev")}
			if err := view.Check(); err != nil {
				return err
			}
			whose, err := selectOne(c, "dev", "pod", "container")
			if err != nil {
				return err
			}
			return env.watch(c, func(b Backend, p *output.Printer) (stream, error) {
				if whose.isEndpoint() {
					t, err := env.targets(c, b, "xdp", whose)
					if err != nil {
						return stream{}, err
					}
					devices := onHost(t.devices)
					view.Match = func(index uint32) bool { return devices[index] }
				}
				return env.counterStream(c, b, p, c.String("instance"), view)
			})
		},
	}
}

func watchFlags(program, sort string, fields []string) []cli.Flag {
	return append(tickFlags(watchInterval),
		&cli.StringFlag{Name: "instance", Value: program, Usage: "loaded instance `NAME`"},
		&cli.StringFlag{Name: "sort", Value: sort, Usage: "`FIELD` to sort by; -FIELD is descending; fields: " + strings.Join(fields, ", ")},
		&cli.IntFlag{Name: "limit", DefaultText: noLimit, Usage: "show the first `N`, the rest counts as others"},
	)
}

// placeFlags choose what is shown by where it was seen.
func placeFlags(rows string) []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "observe", Usage: "where packets are counted, `tc|cgroup`; default: where the program is attached; if at both, tc unless packets bypass it"},
		&cli.StringFlag{Name: "dev", Usage: "only " + rows + " behind the device `NAME`; the others count as others"},
		&cli.StringFlag{Name: "pod", Usage: "only the Pod `NAMESPACE/NAME|UID`: its host-side interfaces, or its cgroup"},
		&cli.StringFlag{Name: "container", Usage: "only the container `ID|NAME`, or the Pod that it shares its interfaces with"},
		&cli.IntFlag{Name: "pid", Usage: "only the container or Pod of the process `N`", DefaultText: "all"},
		&cli.StringFlag{Name: "address", Usage: "only " + rows + " in the `PREFIX`; the others count as others"},
	}
}

// watchPlaces is watch with the flags of placeFlags, whose entries it chooses by match.
func (e *Env) watchPlaces(c *cli.Context, point traffic.Point, match *func(traffic.Key) bool, open func(Backend, *output.Printer) (stream, error)) error {
	whose, err := selectOne(c, "dev", "pod", "container", "pid")
	if err != nil {
		return err
	}
	return e.watch(c, func(b Backend, p *output.Printer) (stream, error) {
		if whose.isEndpoint() {
			if *match, err = e.podsOf(c, b, point, whose); err != nil {
				return stream{}, err
			}
		}
		return open(b, p)
	})
}

func podView(c *cli.Context) (traffic.View, error) {
	view := traffic.View{
		Point: traffic.Point(c.String("observe")), Sort: c.String("sort"), Limit: c.Int("limit"), Device: c.String("dev"),
	}
	if err := view.Check(); err != nil {
		return view, err
	}
	var err error
	view.Address, err = prefixOf(c, "address")
	return view, err
}

// prefixOf reads a flag that is a prefix; the zero value if it isn't given.
func prefixOf(c *cli.Context, flag string) (netip.Prefix, error) {
	text := c.String(flag)
	if text == "" {
		return netip.Prefix{}, nil
	}
	return parsePrefix(text)
}

// parsePrefix reads a prefix, or an address as the prefix of itself.
func parsePrefix(text string) (netip.Prefix, error) {
	if address, err := netip.ParseAddr(text); err == nil {
		return netip.PrefixFrom(address, address.BitLen()), nil
	}
	prefix, err := netip.ParsePrefix(text)
	if err != nil {
		return prefix, fault.New(fault.ErrUsage, "read prefix %q: neither an address nor a prefix", text)
	}
	return prefix, nil
}

// stream is what a command shows again and again.
type stream struct {
	sample func(ctx context.Context) error // takes a sample for the next show
	show   func() error
	close  func() // when it is over; may be nil

	ratesOnly bool // the first sample is only there for the rates of the next one
}

// watch runs a stream until it has shown enough or is interrupted.
func (e *Env) watch(c *cli.Context, open func(Backend, *output.Printer) (stream, error)) error {
	if err := args(c); err != nil {
		return err
	}
	t, err := readTicks(c)
	if err != nil {
		return err
	}
	p, b, err := e.open(c)
	if err != nil {
		return err
	}
	defer b.Close()
	s, err := open(b, p)
	if err != nil {
		return err
	}
	return s.run(c.Context, t, s.ratesOnly || ratesOnly(c))
}

// ratesOnly says whether one document with rates is asked for.
func ratesOnly(c *cli.Context) bool { return c.Bool("once") && c.IsSet("interval") }

// run takes the first sample at once and shows it, unless it is only there for
// the rates of the next one. An end of ctx is a clean end. It closes the stream.
func (s stream) run(ctx context.Context, t ticks, ratesOnly bool) error {
	if s.close != nil {
		defer s.close()
	}
	tick := func() error {
		if err := s.sample(ctx); err != nil {
			return err
		}
		return s.show()
	}
	first := tick
	if ratesOnly {
		first = func() error { return s.sample(ctx) }
	}
	if err := first(); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	if t.count > 0 && !ratesOnly {
		if t.count--; t.count == 0 {
			return nil
		}
	}
	return t.run(ctx, tick)
}

// podStream shows the Pods of a loaded instance.
func (e *Env) podStream(c *cli.Context, b Backend, p *output.Printer, instance string, view traffic.View) (stream, error) {
	samples, err := e.podSamples(c, b, instance, view)
	if err != nil {
		return stream{}, err
	}
	return stream{
		sample: e.noting(c, samples.take),
		show: func() error {
			doc := samples.document()
			return p.Event(doc, func() output.Table { return podTable(doc) })
		},
	}, nil
}

// noting tells people what they should know of a sample.
func (e *Env) noting(c *cli.Context, take func(context.Context) ([]string, error)) func(context.Context) error {
	return func(ctx context.Context) error {
		notes, err := take(ctx)
		e.notes(c, notes)
		return err
	}
}

// podSamples makes documents of the Pods of a loaded instance.
type podSamples struct {
	sampler     traffic.Sampler
	view        traffic.View
	notes       *sampleNotes
	before, now *traffic.Sample
}

func (e *Env) podSamples(c *cli.Context, b Backend, instance string, view traffic.View) (*podSamples, error) {
	sampler, err := b.PodTraffic(instance)
	if err != nil {
		return nil, err
	}
	notes := e.sampleNotes(c, b, instance, view.Point)
	view.Owner = notes.owners.of
	return &podSamples{sampler: sampler, view: view, notes: notes}, nil
}

// take takes a sample for the next document, and returns what people should know.
func (s *podSamples) take(ctx context.Context) ([]string, error) {
	next, err := s.sampler.Sample(ctx)
	if err != nil {
		return nil, notLoaded(err, podTraffic)
	}
	notes := s.notes.of(ctx, maps.Keys(next.Pods), next.Attached)
	s.view.Bypassed = s.notes.bypassed
	s.before, s.now = s.now, &next
	return notes, nil
}

func (s *podSamples) document() traffic.Document { return s.view.Document(s.before, *s.now) }

// put implements sampleSource.
func (s *podSamples) put(all *samples) {
	doc := s.document()
	all.pods = &doc
}

// notLoaded adds to an error what to do if it is that the program isn't loaded.
func notLoaded(err error, program string) error {
	if !errors.Is(err, fault.ErrNotFound) {
		return err
	}
	return fault.New(fault.ErrNotFound, "%w", err).
		Hint("bpfnet run %s --dev DEVICE loads and attaches it for as long as it runs", program)
}

func podTable(d traffic.Document) output.Table {
	place := "device"
	if d.ObservedAt == traffic.Cgroup {
		place = "cgroup"
	}
	t := output.Table{
		Header: []string{"pod", "container", "address", place, "tx", "tx rate", "tx pkts", "rx", "rx rate", "rx pkts"},
		Footer: append([]string{"total", "", ""}, trafficCells(string(d.ObservedAt), d.Total)...),
	}
	for _, pod := range d.Pods {
		t.Rows = append(t.Rows, append([]string{podName(pod.Namespace, pod.Pod, pod.PodUID), podContainer(pod.Who), pod.Address.String()}, trafficCells(podPlace(pod.Who), pod.Traffic)...))
	}
	hidden := d.Others.Pods > 0
	for _, row := range d.Others.Rows {
		if row.Counters != (traffic.Counters{}) && !hidden {
			t.Rows = append(t.Rows, append([]string{row.Row, "", ""}, trafficCells("", row.Traffic)...))
		}
	}
	if hidden {
		t.Rows = append(t.Rows, append([]string{"others", "", ""}, trafficCells("", d.Others.Traffic)...))
	}
	return t
}

// podPlace is where a Pod was seen: the device's name or index, or the cgroup.
func podPlace(pod traffic.Who) string {
	switch {
	case pod.CgroupID != nil:
		return *pod.CgroupID
	case pod.DevName != nil:
		return *pod.DevName
	case pod.IfIndex != nil:
		return fmt.Sprintf("#%d", *pod.IfIndex)
	}
	return ""
}

func trafficCells(place string, t traffic.Traffic) []string {
	return []string{
		place,
		output.Bytes(t.TransmitBytes), rateCell(t.TransmitBytesPerSecond), output.Count(t.TransmitPackets),
		output.Bytes(t.ReceiveBytes), rateCell(t.ReceiveBytesPerSecond), output.Count(t.ReceivePackets),
	}
}

func rateCell(bytesPerSecond *uint64) string {
	if bytesPerSecond == nil {
		return ""
	}
	return output.Rate(float64(*bytesPerSecond))
}

func perSecondCell(perSecond *uint64) string {
	if perSecond == nil {
		return ""
	}
	return output.PerSecond(float64(*perSecond))
}

// counterStream shows the interfaces of a loaded instance.
func (e *Env) counterStream(c *cli.Context, b Backend, p *output.Printer, instance string, view counter.View) (stream, error) {
	sampler, err := b.Counters(instance)
	if err != nil {
		return stream{}, err
	}
	var before, now *counter.Sample
	attached := attachedNews{instance: instance}
	return stream{
		sample: e.noting(c, func(ctx context.Context) ([]string, error) {
			next, err := sampler.Sample(ctx)
			if err != nil {
				return nil, notLoaded(err, xdpCounter)
			}
			before, now = now, &next
			return attached.of(len(next.Devices) > 0), nil
		}),
		show: func() error {
			doc := view.Document(before, *now)
			return p.Event(doc, func() output.Table { return counterTable(doc) })
		},
	}, nil
}

func counterTable(d counter.Document) output.Table {
	t := output.Table{
		Header: []string{"device", "protocol", "packets", "rate", "bytes", "rate"},
		Footer: ratedRow("total", "", d.Total),
	}
	for _, i := range d.Interfaces {
		t.Rows = append(t.Rows, ratedRow(interfaceName(i), "all", i.Rated))
		for _, protocol := range i.Protocols {
			t.Rows = append(t.Rows, ratedRow("", protocolName(protocol), counter.Rated{Counter: protocol.Counter}))
		}
	}
	if d.Others.Interfaces > 0 {
		t.Rows = append(t.Rows, ratedRow("others", "", d.Others.Rated))
	}
	return t
}

func interfaceName(i counter.Interface) string {
	switch {
	case i.DevName != nil:
		return *i.DevName
	case i.IfIndex != nil:
		return fmt.Sprintf("#%d", *i.IfIndex)
	}
	return "beyond the map"
}

func protocolName(p counter.Protocol) string {
	switch {
	case p.Truncated:
		return "truncated"
	case p.Protocol != nil:
		return *p.EtherType + "/" + *p.Protocol
	case p.EtherType != nil:
		return *p.EtherType
	}
	return "other"
}

func ratedRow(name, protocol string, r counter.Rated) []string {
	return []string{
		name, protocol,
		output.Count(r.Packets), perSecondCell(r.PacketsPerSecond), output.Bytes(r.Bytes), rateCell(r.BytesPerSecond),
	}
}
