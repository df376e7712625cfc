package commands

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/urfave/cli/v2"

	"bpfnet/internal/alert"
	"bpfnet/internal/blocklist"
	"bpfnet/internal/datapath"
	"bpfnet/internal/fault"
	"bpfnet/internal/metrics"
	"bpfnet/output"
)

func watchAlertsCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:  "alerts",
		Usage: "what rules notice, as it happens: packets from and to addresses on lists that alert, bursts of traffic, many peers, scans, what endpoints normally don't do",
		Description: "The rule blocklist tells of the first hit of an entry and a far end, and again when there was none for ten seconds. " +
			"Alerts are taken out of the ring buffer block_events, so one process reads them at a time; what comes while none does waits there. " +
			"While it runs, domains on lists are asked for when it is time, and their addresses in answers that the program dns sees are blocked as they come.\n\n" +
			"The other rules tell of Pods, containers and addresses, once when something begins, and once when there has been a fifth less for a window: " +
			"burst, which --burst turns on, of those that move at least so many bytes or packets in a window of so long, counted by pod-traffic, or have so many connections, counted by peers; " +
			"fanout (--fanout) of those that contact so many external peers, and scan (--scan) of those that try so many ports of a peer or fail to connect so often, both remembered by peers. " +
			"for=TIME waits until it has lasted so long; " +
			"mad=FACTOR of a burst wants it to be, besides, so many median absolute deviations above the mean of the last 120 windows of the same endpoint, of which it has to know 30.\n\n" +
			"The rule baseline, which --baseline turns on, tells of endpoints that move much more than is usual at this hour of the week, " +
			"and of peers and ports that they never contacted, by what bpfnet baseline learn has printed: a minute at a time, once for each.\n\n" +
			"Without --rule, these leave blocklist on where a program is loaded that reads lists.\n\n" +
			"--config reads all that from a file, which says besides what rules are called, how severe they are and to whom they apply; rules that it doesn't have are off, unless flags turn them on.",
		Flags: append(append(eventFlags("alerts"),
			&cli.StringSliceFlag{Name: "rule", DefaultText: "all rules", Usage: "only alerts of the `RULE`: " + strings.Join(alert.Rules(), ", ")},
			&cli.StringFlag{Name: "list", Usage: "only hits of the list `NAME`; those of other lists are taken out, too"},
			&cli.BoolFlag{Name: "once", Usage: "only what is there already, and of the other rules what they notice in the time until each may have fired: a window, and what for= and mad= take, and of deviations two windows of the baseline; exit 10 if that is anything"},
			&cli.BoolFlag{Name: "strict", Usage: "exit 11 if events were lost, packets, connections or peers found no room in pod-traffic or peers, or a sink didn't get all alerts"},
			sinkFlag(),
			baselineFlag(),
		), slices.Concat(configFlags(), ruleFlags(), watchMetricsFlags())...),
		Action: func(c *cli.Context) error {
			rules, err := env.readAlertRules(c)
			if err != nil {
				return err
			}
			if c.Bool("dry-run") {
				return env.showAlertRules(c, rules)
			}
			sinks, err := env.openSinks(c, rules.sinks)
			if err != nil {
				return err
			}
			defer sinks.set.Close()
			run := func() error { return env.replayAlerts(c, sinks, rules) }
			if !c.IsSet("replay") {
				p, b, err := env.open(c)
				if err != nil {
					return err
				}
				defer b.Close()
				run = func() error { return env.watchAlerts(c, p, b, sinks, rules) }
			}
			if err := run(); c.Context.Err() == nil || !errors.Is(err, context.Canceled) {
				return err
			}
			return nil // interrupted before there was something to show
		},
	}
}

// watchAlerts shows alerts until there were enough, the time is over, the command
// is interrupted or nobody reads its output any more.
func (e *Env) watchAlerts(c *cli.Context, p *output.Printer, b Backend, sinks alertSinks, rules alertRules) error {
	w := newAlertWatch(c, p, sinks, rules)
	if rules.sampled() {
		var err error
		if w.samples, err = e.watchSamples(c, b, rules); err != nil {
			return err
		}
	}
	hits, err := rules.wantsHits(c.Context, b)
	if err != nil {
		return err
	}
	if hits {
		end, err := e.watchHits(c, b, w)
		if err != nil {
			return err
		}
		defer end()
	}
	end, err := e.serveWatch(c, b, w)
	if err != nil {
		return err
	}
	defer end()
	ctx, stop := e.whileWanted(c.Context, sinks, c.Duration("for"))
	defer stop()
	return w.conclude(w.run(ctx))
}

// watchHits opens what the rule blocklist needs; end closes it.
func (e *Env) watchHits(c *cli.Context, b Backend, w *alertWatch) (end func(), err error) {
	if w.devices, err = e.alertPlaces(c, b, w.list); err != nil {
		return nil, err
	}
	source, err := b.Blocklist().Events(c.Context, blocklist.EventsRequest{Steal: c.Bool("steal"), LockTimeout: c.Duration("lock-timeout")})
	if err != nil {
		return nil, err
	}
	end = func() { source.Close() }
	before, err := source.Loss()
	if err != nil {
		end()
		return nil, err
	}
	e.notes(c, source.Notes())
	if before.Before > 0 {
		e.note(c, "note: the buffer of events was full when the watch began; events lost since the lists were made: %d", before.Before)
	}
	if !w.once {
		keeper, err := e.keepDomains(c, b)
		if err != nil {
			end()
			return nil, err
		}
		w.said = keeper.said
		end = func() { keeper.end(); source.Close() }
	}
	w.source, w.pods = source, newAlertPods(c.Context, b.Endpoints(), w.devices)
	w.process = newAlertProcesses(b, w.devices, w.note)
	return end, nil
}

// alertPlaces returns the devices that alerts may be of, and says what there won't
// be alerts of. With a name it is about one list.
func (e *Env) alertPlaces(c *cli.Context, b Backend, name string) (*deviceNames, error) {
	loaded, attachments, err := blocklistInstances(c.Context, b)
	switch {
	case err != nil:
		return nil, err
	case loaded == "":
		return nil, fault.New(fault.ErrNotFound, "watch alerts: blocklist is not loaded").
			Hint("bpfnet load blocklist; bpfnet attach tc blocklist --dev DEVICE --direction both").
			Hint("--burst, --fanout, --scan and --baseline turn on rules that look at pod-traffic and peers")
	case len(attachments) == 0:
		e.note(c, "note: %s is not attached, so the rule blocklist notices nothing: bpfnet attach tc %s --dev DEVICE --direction both", loaded, loaded)
	}
	overview, err := b.Blocklist().Overview(c.Context)
	if err != nil {
		return nil, err
	}
	if err := e.checkAlertLists(c, overview.Lists, name); err != nil {
		return nil, err
	}
	devices := &deviceNames{attachments: func(ctx context.Context) ([]datapath.Attachment, error) {
		_, attachments, err := blocklistInstances(ctx, b)
		return attachments, err
	}}
	devices.set(attachments)
	return devices, nil
}

func (e *Env) checkAlertLists(c *cli.Context, lists []blocklist.List, name string) error {
	chosen := slices.DeleteFunc(slices.Clone(lists), func(l blocklist.List) bool { return name != "" && l.Name != name })
	if name != "" && len(chosen) == 0 {
		return fault.New(fault.ErrNotFound, "no list %q", name).Hint("bpfnet blocklist lists   shows those there are")
	}
	if !slices.ContainsFunc(chosen, func(l blocklist.List) bool {
		return l.Action == blocklist.Alert || l.Action == blocklist.AlertAndDrop
	}) {
		e.note(c, "note: no list alerts yet, so the rule blocklist notices nothing: bpfnet blocklist add ADDRESS makes one that does, bpfnet blocklist action alert+drop --list NAME has one do so")
	}
	return nil
}

// alertWatch shows alerts.
type alertWatch struct {
	source  blocklist.EventSource // nil: the rule blocklist is off
	samples *sampleWatch          // nil: no rule looks at samples
	stream  *output.Stream
	sinks   alertSinks
	gate    *alertGate
	metrics *metrics.Watch // nil: nobody asked for any
	devices *deviceNames
	pods    alertPods
	process *alertProcesses
	note    func(string)
	said    <-chan string // notes of what goes on beside; nil: nothing does
	list    string        // "": all
	most    uint64        // how many to show; 0: all
	once    bool
	strict  bool
	shown   atomic.Uint64
	lost    uint64 // how many lost events a note has told of
}

func newAlertWatch(c *cli.Context, p *output.Printer, sinks alertSinks, rules alertRules) *alertWatch {
	return &alertWatch{
		stream: p.Stream(), sinks: sinks, gate: newAlertGate(rules.file.Rules, rules.silences), note: sinks.note, list: rules.list,
		most: c.Uint64("count"), once: c.Bool("once"), strict: c.Bool("strict"),
	}
}

// lossInterval is the time between two looks whether events were lost.
const lossInterval = time.Second

// run shows alerts until there were enough or ctx ends. A goroutine each reads the
// ring buffer, which waits while what it has read is shown here, and takes samples;
// what else may happen during a watch has its case here, too.
func (w *alertWatch) run(ctx context.Context) (failed error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	batches, shown, taken, ended := make(chan []blocklist.Event), make(chan error), make(chan samples), make(chan error, 2)
	running := w.start(ctx, batches, shown, taken, ended)
	loss := time.NewTicker(lossInterval)
	defer loss.Stop()
	for running > 0 {
		select {
		case events := <-batches: // also of a batch that was read when there were enough
			shown <- w.show(ctx, events)
		case s := <-taken:
			if over, err := w.showSamples(s); over || err != nil {
				failed = cmp.Or(failed, err)
				stop()
			}
		case <-loss.C:
			w.noteLoss()
		case text := <-w.said:
			w.note(text)
		case err := <-ended:
			failed = cmp.Or(failed, err)
			running--
			if err != nil || !w.once || w.enough() {
				stop()
			}
		}
	}
	return failed
}

// start starts what is read, and says how many there are that will have ended.
func (w *alertWatch) start(ctx context.Context, batches chan<- []blocklist.Event, shown <-chan error, taken chan<- samples, ended chan<- error) (running int) {
	if w.source != nil {
		running++
		go func() {
			ended <- w.source.Read(ctx, blocklist.EventsReading{
				Emit:    func(events []blocklist.Event) error { batches <- events; return <-shown },
				Most:    w.left,
				Pending: w.once,
			})
		}()
	}
	if w.samples != nil {
		running++
		go func() { ended <- w.samples.read(ctx, taken) }()
	}
	return running
}

// batchAlerts is the most that is read before it is shown.
const batchAlerts = 1024

// left is how many alerts the next batch may have.
func (w *alertWatch) left() int {
	if w.most == 0 {
		return batchAlerts
	}
	return int(min(w.most-min(w.most, w.shown.Load()), batchAlerts))
}

func (w *alertWatch) enough() bool { return w.left() == 0 }

// show writes the alerts of events, all at once.
func (w *alertWatch) show(ctx context.Context, events []blocklist.Event) error {
	loss, err := w.source.Loss()
	if err != nil {
		return err
	}
	events = slices.DeleteFunc(slices.Clone(events), func(e blocklist.Event) bool { return w.list != "" && e.Entry.List != w.list })
	processes := w.process.of(ctx, events, w.source)
	for i, event := range events {
		device := w.devices.of(ctx, event)
		found := alert.OfBlocklist(event, device, processes[i], loss.Events)
		found.K8s = w.pods.of(ctx, event)
		pod := podName(found.K8s.Namespace, found.K8s.Pod, nil)
		if err := w.tell(foundAs(found, "", func() string { return alertLine(event, device, pod, processes[i]) }), event.Time); err != nil {
			return err
		}
	}
	return w.stream.Flush()
}

// noteLoss says when more events were lost than it said before.
func (w *alertWatch) noteLoss() {
	if w.source == nil {
		return
	}
	loss, err := w.source.Loss()
	if err != nil || loss.Events == w.lost { // an error is told in the end
		return
	}
	w.lost = loss.Events
	w.note(fmt.Sprintf("events lost so far, because they weren't read fast enough: %d", loss.Events))
}

// conclude ends a watch. It says what no alert told of and no sink got, and makes
// errors of what was asked for as such.
func (w *alertWatch) conclude(failed error) error {
	undelivered := w.closeSinks()
	if failed != nil {
		return failed
	}
	lost, err := w.lostEvents()
	if err != nil {
		return err
	}
	var unseen error
	if w.samples != nil {
		unseen = w.samples.conclude(w.note)
	}
	w.gate.conclude(w.note)
	switch shown := w.shown.Load(); {
	case w.strict && lost > 0:
		return fault.New(fault.ErrLossy, "watch alerts: events were lost: %d", lost)
	case w.strict && unseen != nil:
		return unseen
	case w.strict && undelivered > 0:
		return fault.New(fault.ErrLossy, "watch alerts: alerts that sinks didn't get: %d", undelivered)
	case w.once && shown > 0:
		return fault.New(fault.ErrDiffers, "watch alerts: alerts: %d", shown)
	}
	return nil
}

// lostEvents says what the rule blocklist didn't tell, and returns how much of it was
// lost.
func (w *alertWatch) lostEvents() (uint64, error) {
	if w.source == nil {
		return 0, nil
	}
	loss, err := w.source.Loss()
	if err != nil {
		return 0, err
	}
	w.noteLoss()
	w.process.conclude()
	if loss.Suppressed > 0 {
		w.note(fmt.Sprintf("hits without an alert, within %s of one of the same entry and far end: %d", blocklist.Episode, loss.Suppressed))
	}
	return loss.Events + loss.Before, nil
}

// deviceNames are the names of the interfaces that a program is attached to.
type deviceNames struct {
	attachments func(context.Context) ([]datapath.Attachment, error) // reads them
	names       map[uint32]*string                                   // nil: interfaces of several namespaces have that index
	netns       map[uint32]uint64                                    // inodes of their namespaces, 0 as above
	read        time.Time
}

// How often names are read again: when they may have changed, and when one isn't
// known. Who changes attachments may hold the lock for long, which nobody waits
// for.
const (
	namesAge     = 10 * time.Second
	namesRetry   = time.Second
	namesLongest = 20 * time.Millisecond
)

func (d *deviceNames) set(attachments []datapath.Attachment) {
	d.names, d.netns, d.read = map[uint32]*string{}, map[uint32]uint64{}, time.Now()
	for _, a := range attachments {
		if a.IfIndex == nil || a.DevName == nil || a.Defunct {
			continue
		}
		name := a.DevName
		if before, known := d.names[*a.IfIndex]; known && (before == nil || *before != *name) {
			name = nil
		}
		d.names[*a.IfIndex] = name
		d.place(a)
	}
}

// of returns the interface of an event, nil if it isn't known. In a cgroup the
// index may be one of any namespace.
func (d *deviceNames) of(ctx context.Context, e blocklist.Event) *string {
	if e.Hook == "cgroup" {
		return nil
	}
	return d.at(ctx, e.IfIndex)
}

// at returns the interface of an index, nil if it isn't known.
func (d *deviceNames) at(ctx context.Context, index uint32) *string {
	name, known := d.names[index]
	if age := time.Since(d.read); age < namesRetry || known && age < namesAge {
		return name
	}
	ctx, cancel := context.WithTimeout(ctx, namesLongest)
	defer cancel()
	d.read = time.Now()
	if attachments, err := d.attachments(ctx); err == nil {
		d.set(attachments)
	}
	return d.names[index]
}

// alertLine is a hit for people, with what may be long at its end.
func alertLine(e blocklist.Event, device *string, pod string, process *alert.Process) string {
	fate, list, place := "alerted", e.Entry.List, "#"+strconv.FormatUint(uint64(e.IfIndex), 10)
	if e.Dropped {
		fate = "dropped"
	}
	if list == "" {
		list = "(gone)"
	}
	if device != nil {
		place = *device
	}
	more := []string{place, pod, "", e.Entry.Reason}
	if process != nil {
		more[2] = process.String()
	}
	more = slices.DeleteFunc(more, func(text string) bool { return text == "" })
	return fmt.Sprintf("%s  %-9s  %-16s  %s  %-4s  %-34s  %s",
		e.Time.Format("15:04:05.000"), list, e.Entry.Prefix, fate, optional(alert.NetworkOf(e).Transport),
		endText(e.Source)+" -> "+endText(e.Destination), strings.Join(more, "  "))
}

func endText(end netip.AddrPort) string {
	if end.Port() == 0 {
		return end.Addr().String()
	}
	return end.String()
}
