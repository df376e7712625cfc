package commands

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"bpfnet/internal/baseline"
	"bpfnet/internal/fault"
	"bpfnet/internal/nearest"
	"bpfnet/internal/traffic"
	"bpfnet/output"
)

const (
	// learnWindow is what volumes are of.
	learnWindow = time.Minute
	// learnInterval is the time between two samples unless --interval says otherwise.
	learnInterval = 10 * time.Second
	// lastLook is how long the last sample may take, when the time is over.
	lastLook = time.Second
)

func baselineCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:  "baseline",
		Usage: "what endpoints normally do: learn it, look at it, compare it",
		Subcommands: []*cli.Command{
			{
				Name:  "learn",
				Usage: "print what endpoints do until --for is over or it is interrupted, as a file for watch alerts --baseline",
				Description: "It learns how much endpoints move by hour of the week, from pod-traffic, and whom they contact and at which ports, from the program peers. " +
					"The file is JSON, also where other commands print tables. It may be edited.",
				Flags: []cli.Flag{
					&cli.DurationFlag{Name: "for", Usage: "end after `TIME`", DefaultText: "when interrupted"},
					&cli.StringFlag{Name: "replay", Usage: "learn from `FILE|-`, which watch pods and watch peers -o ndjson have printed, instead of the kernel"},
					&cli.StringFlag{Name: "merge", Usage: "go on from `FILE|-`, which was learned earlier"},
					&cli.DurationFlag{Name: "window", Value: learnWindow, Usage: "learn how much is moved in `TIME`, a whole part of an hour"},
					&cli.DurationFlag{Name: "interval", Value: learnInterval, Usage: "`TIME` between two samples"},
					&cli.StringFlag{Name: "instance", Value: podTraffic, Usage: "loaded instance `NAME` that counts"},
					&cli.StringFlag{Name: "peers-instance", Value: peersProgram, Usage: "loaded instance `NAME` that remembers peers"},
					&cli.StringFlag{Name: "observe", Usage: "where packets are seen, `tc|cgroup`; default: as watch pods and watch peers"},
				},
				Action: env.baselineLearn,
			},
			{
				Name:      "show",
				Usage:     "what is usual for all endpoints, or by hour for one",
				ArgsUsage: "FILE [ENDPOINT]",
				Action:    env.baselineShow,
			},
			{
				Name:      "diff",
				Usage:     "what two files have differently; exit 10 if that is anything",
				ArgsUsage: "BEFORE AFTER",
				Flags: []cli.Flag{
					&cli.StringFlag{Name: "score", Value: strconv.Itoa(baseline.DefaultScore), Usage: "volumes differ whose medians are `NUMBER` robust standard deviations apart"},
				},
				Action: env.baselineDiff,
			},
		},
	}
}

// readBaseline reads a file that learn has printed.
func (e *Env) readBaseline(ctx context.Context, name string) (baseline.Document, error) {
	source, input, err := e.input(ctx, name)
	if err != nil {
		return baseline.Document{}, err
	}
	defer input.Close()
	text, err := io.ReadAll(input)
	if err != nil {
		return baseline.Document{}, fmt.Errorf("read %s: %w", source, err)
	}
	return baseline.Read(text, source)
}

func (e *Env) baselineLearn(c *cli.Context) error {
	if err := checkLearn(c); err != nil {
		return err
	}
	p, err := e.printer(c)
	if err != nil {
		return err
	}
	if c.IsSet("replay") {
		c.Context = e.Interrupts(c.Context)
	}
	earlier := baseline.Document{WindowSeconds: uint64(c.Duration("window") / time.Second)}
	if c.IsSet("merge") {
		earlier, err = e.readBaseline(c.Context, c.String("merge"))
		if window := time.Duration(earlier.WindowSeconds) * time.Second; err == nil && c.IsSet("window") && c.Duration("window") != window {
			err = usage(c, "--window %s: the windows of %s have %s", c.Duration("window"), c.String("merge"), window)
		}
		if err != nil {
			return err
		}
	}
	l := &learning{Learner: baseline.Learn(earlier)}
	if c.IsSet("replay") {
		err = e.replay(c, func(s samples) error { l.take(s); return nil })
	} else {
		err = e.learnLive(c, l)
	}
	if err != nil && l.samples == 0 {
		return err
	}
	return fault.Join(err, e.printLearned(c, p, l))
}

func checkLearn(c *cli.Context) error {
	if err := args(c); err != nil {
		return err
	}
	if err := baseline.CheckWindow(c.Duration("window")); err != nil {
		return usage(c, "--window: %v", err)
	}
	if err := checkStdin(c, "merge", c.String("merge"), "replay"); err != nil {
		return err
	}
	if c.IsSet("replay") {
		for _, flag := range []string{"for", "interval", "instance", "peers-instance", "observe"} {
			if c.IsSet(flag) {
				return usage(c, "--replay and --%s exclude each other", flag)
			}
		}
		return nil
	}
	if c.IsSet("for") && c.Duration("for") <= 0 {
		return usage(c, "--for %s: the time has to be more than 0", c.Duration("for"))
	}
	if _, err := readTicks(c); err != nil {
		return err
	}
	if interval, window := c.Duration("interval"), c.Duration("window"); interval > window {
		return usage(c, "--interval %s is longer than --window %s", interval, window)
	}
	return traffic.View{Point: traffic.Point(c.String("observe"))}.Check()
}

// learning counts what there was to learn from.
type learning struct {
	*baseline.Learner
	samples int
}

func (l *learning) take(s samples) {
	l.samples++
	if s.pods != nil {
		l.Pods(*s.pods)
	}
	if s.peers != nil {
		l.Peers(*s.peers)
	}
}

// learnLive takes samples until --for is over or the command is interrupted.
func (e *Env) learnLive(c *cli.Context, l *learning) error {
	b, err := e.backend(c)
	if err != nil {
		return err
	}
	defer b.Close()
	instance, peersInstance, point := c.String("instance"), c.String("peers-instance"), traffic.Point(c.String("observe"))
	pods, met, err := e.baselineKinds(c, b, instance, peersInstance)
	if err != nil {
		return err
	}
	w := &sampleWatch{interval: c.Duration("interval")}
	if w.sources, err = e.sampleSources(c, b, instance, peersInstance, point, pods, met); err != nil {
		return err
	}
	ctx, stop := context.WithCancel(c.Context)
	if c.IsSet("for") {
		ctx, stop = context.WithTimeout(c.Context, c.Duration("for"))
	}
	defer stop()
	look := func(ctx context.Context) error {
		s, err := w.take(ctx)
		if err != nil {
			return err
		}
		e.notes(c, s.notes)
		l.take(s)
		return nil
	}
	err = look(ctx)
	if err == nil {
		err = ticks{interval: w.interval}.run(ctx, func() error { return look(ctx) })
	}
	if ctx.Err() == nil {
		return err
	}
	late, err := lookOnce(context.WithoutCancel(ctx), look)
	if late && l.samples > 0 {
		e.note(c, "note: a last sample took longer than %s, so what was since the one before wasn't learned", lastLook)
		return nil
	}
	return err
}

// lookOnce says whether a look takes too long for one when the time is over.
func lookOnce(ctx context.Context, look func(context.Context) error) (late bool, err error) {
	ctx, stop := context.WithTimeout(ctx, lastLook)
	defer stop()
	err = look(ctx)
	return err != nil && ctx.Err() != nil, err
}

// baselineKinds says of what there are samples: of traffic, of peers. There has to be
// one of them.
func (e *Env) baselineKinds(c *cli.Context, b Backend, instance, peersInstance string) (pods, met bool, err error) {
	absent := func(instance, program, what string) {
		e.note(c, "note: %s is not loaded, so nothing is known of %s: bpfnet load %s; bpfnet attach tc %s --dev DEVICE --direction both", instance, what, program, program)
	}
	_, missing := b.Attachments(c.Context, instance)
	_, alone := b.Attachments(c.Context, peersInstance)
	switch {
	case missing != nil && alone != nil:
		return false, false, notLoaded(missing, podTraffic)
	case missing != nil:
		absent(instance, podTraffic, "volumes")
	case alone != nil:
		absent(peersInstance, peersProgram, "peers and ports")
	}
	return missing == nil, alone == nil, nil
}

// printLearned prints the file, and says what it doesn't have.
func (e *Env) printLearned(c *cli.Context, p *output.Printer, l *learning) error {
	d := l.Document()
	windows := uint64(0)
	for _, endpoint := range d.Endpoints {
		for _, cell := range endpoint.Volume {
			windows += cell.Windows
		}
	}
	e.note(c, "note: endpoints: %d, windows of %ds: %d", len(d.Endpoints), d.WindowSeconds, windows)
	if apart, missed := l.TooFar(); missed {
		e.note(c, "note: samples were up to %s apart, so nothing was learned of windows in between", apart)
	}
	packets, contacts := l.Lost()
	for _, n := range []struct {
		count uint64
		what  string
	}{
		{uint64(l.LeftOut()), "endpoints that were left out, because there are too many or a file can't have their names"},
		{packets, "packets that weren't learned from, because the map was full"},
		{contacts, "peers and connections that weren't learned from, because there was no room"},
	} {
		if n.count > 0 {
			e.note(c, "note: %s: %d", n.what, n.count)
		}
	}
	return e.printBaseline(p, d)
}

// printBaseline prints a document so that it can be read again.
func (e *Env) printBaseline(p *output.Printer, d baseline.Document) error {
	switch p.Format() {
	case output.FormatTable, output.FormatJSON, output.FormatPretty:
		_, err := e.Stdout.Write(d.Encode())
		return err
	}
	return p.Object(d, nil)
}

func (e *Env) baselineShow(c *cli.Context) error {
	if err := args(c, "FILE", "[ENDPOINT]"); err != nil {
		return err
	}
	p, err := e.printer(c)
	if err != nil {
		return err
	}
	file, name := c.Args().Get(0), c.Args().Get(1)
	d, err := e.readBaseline(c.Context, file)
	if err != nil {
		return err
	}
	table := endpointsTable
	if name != "" {
		one, ok := d.Find(name)
		if !ok {
			missing := fault.New(fault.ErrNotFound, "no endpoint %q in %s", name, file)
			if near := nearest.Word(name, d.Names()); near != "" {
				return missing.Hint("did you mean %q?", near)
			}
			return missing.Hint("bpfnet baseline show %s   lists them", file)
		}
		d, table = one, hoursTable
	}
	if p.Format() != output.FormatTable {
		return e.printBaseline(p, d)
	}
	return p.Object(d, func() output.Table { return table(d) })
}

// endpointsTable has a row for each endpoint.
func endpointsTable(d baseline.Document) output.Table {
	t := output.Table{Header: append(append([]string{"endpoint", "hours", "windows"}, volumeHeader(d)...), "peers", "ports")}
	for _, endpoint := range d.Endpoints {
		row := []string{endpoint.Endpoint, strconv.Itoa(len(endpoint.Volume)), "", "", "", "", "", "", "", "", ""}
		if len(endpoint.Volume) > 0 {
			row = append(row[:2], volumeCells(endpoint.Week())...)
		}
		t.Rows = append(t.Rows, append(row, countCell(endpoint.Peers), countCell(endpoint.Ports)))
	}
	return t
}

// countCell is how many there are, empty where that isn't known.
func countCell(items []string) string {
	if items == nil {
		return ""
	}
	return strconv.Itoa(len(items))
}

// hoursTable has a row for each hour, peer and port of an endpoint.
func hoursTable(d baseline.Document) output.Table {
	t := output.Table{Header: append([]string{"hour", "windows"}, volumeHeader(d)...)}
	for _, cell := range d.Endpoints[0].Volume {
		t.Rows = append(t.Rows, append([]string{cell.Hour}, volumeCells(cell)...))
	}
	items := func(kind string, all []string) {
		for _, item := range all {
			row := make([]string, len(t.Header))
			row[0] = kind + " " + item
			t.Rows = append(t.Rows, row)
		}
	}
	items("peer", d.Endpoints[0].Peers)
	items("port", d.Endpoints[0].Ports)
	return t
}

func volumeHeader(d baseline.Document) (names []string) {
	per := fmt.Sprintf("/%ds", d.WindowSeconds)
	for _, name := range []string{"tx", "tx pkts", "rx", "rx pkts"} {
		names = append(names, name+per, "most")
	}
	return names
}

func volumeCells(cell baseline.Cell) []string {
	row := []string{output.Count(cell.Windows)}
	for _, v := range []struct {
		usual  baseline.Usual
		number func(uint64) string
	}{
		{cell.TransmitBytes, output.Bytes}, {cell.TransmitPackets, output.Count}, {cell.ReceiveBytes, output.Bytes}, {cell.ReceivePackets, output.Count},
	} {
		row = append(row, v.number(v.usual.Median)+" ± "+v.number(v.usual.MAD), v.number(v.usual.Most))
	}
	return row
}

func (e *Env) baselineDiff(c *cli.Context) error {
	if err := args(c, "BEFORE", "AFTER"); err != nil {
		return err
	}
	score, err := baseline.ParseScore(c.String("score"))
	if err != nil {
		return usage(c, "--%v", err)
	}
	p, err := e.printer(c)
	if err != nil {
		return err
	}
	before, err := e.readBaseline(c.Context, c.Args().Get(0))
	if err != nil {
		return err
	}
	after, err := e.readBaseline(c.Context, c.Args().Get(1))
	if err != nil {
		return err
	}
	if before.WindowSeconds != after.WindowSeconds {
		return fault.New(fault.ErrUsage, "compare %s with %s: windows of %ds and of %ds", c.Args().Get(0), c.Args().Get(1), before.WindowSeconds, after.WindowSeconds)
	}
	all := baseline.Diff(before, after, score)
	if err := p.List(all, func() output.Table { return differencesTable(all) }); err != nil {
		return err
	}
	if len(all) > 0 {
		return fault.New(fault.ErrDiffers, "baseline diff: differences: %d", len(all))
	}
	return nil
}

// volumeNumber writes numbers of a metric.
func volumeNumber(metric string) func(uint64) string {
	if strings.HasSuffix(metric, "bytes") {
		return output.Bytes
	}
	return output.Count
}

func differencesTable(all []baseline.Difference) output.Table {
	t := output.Table{Header: []string{"endpoint", "what", "change", "item", "before", "after", "score"}}
	for _, d := range all {
		row := []string{d.Endpoint, d.Kind, d.Change, optional(d.Item), "", "", ""}
		if d.Kind == "volume" {
			row[3] = *d.Hour + " " + *d.Metric
			number := volumeNumber(*d.Metric)
			row[4], row[5] = number(d.Before.Median), number(d.After.Median)
			row[6] = strconv.FormatFloat(*d.Score, 'f', 1, 64)
		}
		t.Rows = append(t.Rows, row)
	}
	return t
}
