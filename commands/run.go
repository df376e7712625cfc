package commands

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/urfave/cli/v2"

	"bpfnet/internal/counter"
	"bpfnet/internal/datapath"
	"bpfnet/internal/drops"
	"bpfnet/internal/fault"
	"bpfnet/internal/flow"
	"bpfnet/internal/peers"
	"bpfnet/internal/traffic"
	"bpfnet/output"
)

// cleanupTimeout is how long taking things away may last after a command was
// interrupted or failed.
const cleanupTimeout = 10 * time.Second

func runCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:      "run",
		Usage:     "load, attach and watch a program; everything is gone when it ends",
		ArgsUsage: "PROGRAM|FILE.o",
		Description: "Shows what the program counts; of an object of your own, how often its programs run. " +
			"A program that fits both tc and xdp is attached to tc, unless --mode is given.",
		Flags: append(tickFlags(watchInterval),
			&cli.StringSliceFlag{Name: "dev", Usage: "attach to the device `NAME`; may be repeated"},
			&cli.StringSliceFlag{Name: "cgroup", Usage: "attach to the cgroup `DIR`; may be repeated"},
			&cli.StringSliceFlag{Name: "pod", Usage: "attach to the interfaces of the Pod `NAMESPACE/NAME|UID`, or to its cgroup if the program fits nothing else; may be repeated"},
			&cli.StringSliceFlag{Name: "container", Usage: "the same of the container `ID|NAME`; may be repeated"},
			&cli.StringFlag{Name: "direction", Usage: "`WAY` as the hook sees it: ingress, egress or both; default: both for pod-traffic and peers, else ingress"},
			&cli.StringFlag{Name: "mode", Usage: "attach to xdp in `MODE` auto, native, generic or offload"},
			&cli.StringSliceFlag{Name: "prog", Usage: "load only the program `FUNCTION` of the object; may be repeated"},
			&cli.StringSliceFlag{Name: "set", Usage: "set a global variable, `VARIABLE=VALUE`; may be repeated"},
			&cli.StringFlag{Name: "sort", Usage: "`FIELD` to sort by; -FIELD is descending"},
			&cli.IntFlag{Name: "limit", DefaultText: noLimit, Usage: "show the first `N`, the rest counts as others"},
		),
		Action: env.run,
	}
}

// job is what a run command does.
type job struct {
	load      datapath.LoadRequest
	devices   []string
	cgroups   []string
	endpoints []selection // Pods and containers
	direction datapath.Direction
	mode      datapath.XDPMode // empty: xdp only if nothing else fits
	pods      traffic.View
	peers     peers.View
	counters  counter.View
	drops     drops.View
	flows     flow.View
}

func (e *Env) job(c *cli.Context) (job, error) {
	if err := args(c, "PROGRAM|FILE.o"); err != nil {
		return job{}, err
	}
	source := c.Args().First()
	j := job{
		load: datapath.LoadRequest{
			Source: source, Name: datapath.DefaultName(source), Programs: c.StringSlice("prog"), DryRun: c.Bool("dry-run"),
		},
		devices: c.StringSlice("dev"), cgroups: c.StringSlice("cgroup"),
		pods:     traffic.View{Sort: c.String("sort"), Limit: c.Int("limit")},
		peers:    peers.View{Sort: c.String("sort"), Limit: c.Int("limit")},
		counters: counter.View{Sort: c.String("sort"), Limit: c.Int("limit")},
		flows:    flow.View{Sort: c.String("sort"), Limit: c.Int("limit")},
		drops:    drops.View{Sort: c.String("sort"), Limit: c.Int("limit"), Inside: c.String("netns") != ""},
	}
	var err error
	if j.load.Object, err = e.object(source); err != nil {
		return j, err
	}
	if j.load.Set, err = pairs(c, "set"); err != nil {
		return j, err
	}
	for _, flag := range []string{"pod", "container"} {
		for _, value := range c.StringSlice(flag) {
			one, err := newSelection(flag, value)
			if err != nil {
				return j, err
			}
			j.endpoints = append(j.endpoints, one)
		}
	}
	return j, j.check(c)
}

// check reads the flags whose meaning depends on the program.
func (j *job) check(c *cli.Context) (err error) {
	traces := j.load.Source == dropsProgram || j.load.Source == flowsProgram
	if j.load.Object == nil && !traces && len(j.devices)+len(j.cgroups)+len(j.endpoints) == 0 {
		return usage(c, "one of --dev, --cgroup, --pod, --container is missing")
	}
	fallback := datapath.Ingress
	switch j.load.Source {
	case podTraffic:
		fallback = datapath.Both
		err = j.pods.Check()
	case peersProgram:
		fallback = datapath.Both
		err = j.peers.Check()
	case xdpCounter:
		err = j.counters.Check()
	case dropsProgram:
		err = j.drops.Check()
	case flowsProgram:
		err = j.flows.Check()
	}
	if err != nil {
		return err
	}
	word, err := oneOf("direction", cmp.Or(c.String("direction"), string(fallback)),
		string(datapath.Ingress), string(datapath.Egress), string(datapath.Both))
	if err != nil {
		return err
	}
	j.direction = datapath.Direction(word)
	if !c.IsSet("mode") {
		return nil
	}
	word, err = oneOf("mode", c.String("mode"),
		string(datapath.ModeAuto), string(datapath.ModeNative), string(datapath.ModeGeneric), string(datapath.ModeOffload))
	j.mode = datapath.XDPMode(word)
	return err
}

// finder makes requests for what a selection means, out of one without a target.
type finder func(datapath.AttachRequest, selection) ([]datapath.AttachRequest, error)

// attachments says how to attach a loaded program.
func (j job) attachments(programs []datapath.Program, find finder) ([]datapath.AttachRequest, error) {
	has := func(kind string) bool {
		return slices.ContainsFunc(programs, func(p datapath.Program) bool { return p.Type == kind })
	}
	onDevice := datapath.AttachRequest{Name: j.load.Name, Hook: "tc", Direction: j.direction}
	if j.mode != "" || !has("sched_cls") {
		onDevice = datapath.AttachRequest{Name: j.load.Name, Hook: "xdp", Mode: cmp.Or(j.mode, datapath.ModeAuto)}
	}
	inCgroup := datapath.AttachRequest{Name: j.load.Name, Hook: "cgroup", Direction: j.direction}
	if has("sock_ops") {
		inCgroup = datapath.AttachRequest{Name: j.load.Name, Hook: "sockops"}
	}
	onEndpoint := inCgroup
	if has("sched_cls") || has("xdp") {
		onEndpoint = onDevice
	}
	var requests []datapath.AttachRequest
	for _, device := range j.devices {
		r := onDevice
		r.Device = device
		requests = append(requests, r)
	}
	for _, cgroup := range j.cgroups {
		r := inCgroup
		r.Cgroup = cgroup
		requests = append(requests, r)
	}
	for _, one := range j.endpoints {
		found, err := find(onEndpoint, one)
		if err != nil {
			return nil, err
		}
		requests = append(requests, found...)
	}
	if requests == nil {
		requests = []datapath.AttachRequest{{Name: j.load.Name, Hook: "trace"}}
	}
	return requests, nil
}

func (e *Env) run(c *cli.Context) error {
	j, err := e.job(c)
	if err != nil {
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
	loaded, err := loadNew(c.Context, b, j.load)
	if err != nil {
		return err
	}
	if j.load.DryRun {
		return e.planRun(c, b, p, j, loaded)
	}
	e.notes(c, loaded.Notes)
	return cleanUp(e.runLoaded(c, b, p, j, t, loaded), b, j.load.Name)
}

// planRun checks the targets of a program whose load was a dry run, and says
// what run would do.
func (e *Env) planRun(c *cli.Context, b Backend, p *output.Printer, j job, loaded datapath.Loaded) error {
	requests, err := j.attachments(loaded.Programs, e.finder(c, b))
	if err != nil {
		return err
	}
	for _, request := range requests {
		if err := b.CheckTarget(request); err != nil {
			return err
		}
	}
	e.note(c, "dry run: would have loaded %q", loaded.Name)
	for _, request := range requests {
		e.note(c, "dry run: would have attached %s", requestText(request))
	}
	e.notes(c, loaded.Notes)
	return printLoaded(p, loaded, true)
}

// requestText says what is to be attached where.
func requestText(r datapath.AttachRequest) string {
	text := r.Hook
	switch r.Direction {
	case "":
	case datapath.Both:
		text += " ingress and egress"
	default:
		text += " " + string(r.Direction)
	}
	if target := cmp.Or(r.Device, r.Cgroup); target != "" {
		text += " to " + target
	}
	if r.Mode != "" {
		text += ", mode " + string(r.Mode)
	}
	return text
}

// loadNew loads a program under a name that must not be in use.
func loadNew(ctx context.Context, b Backend, r datapath.LoadRequest) (datapath.Loaded, error) {
	inUse := fault.New(fault.ErrConflict, "run %q: an instance of that name is loaded", r.Name).
		Hint("bpfnet status %s shows it, bpfnet unload %s --detach removes it", r.Name, r.Name)
	if _, err := b.Attachments(ctx, r.Name); err == nil {
		return datapath.Loaded{}, inUse
	} else if !errors.Is(err, fault.ErrNotFound) {
		return datapath.Loaded{}, err
	}
	loaded, err := b.Load(ctx, r)
	if err == nil && !loaded.Changed {
		return loaded, inUse
	}
	return loaded, err
}

// runLoaded attaches what is loaded and shows it until the stream ends.
func (e *Env) runLoaded(c *cli.Context, b Backend, p *output.Printer, j job, t ticks, loaded datapath.Loaded) error {
	requests, err := j.attachments(loaded.Programs, e.finder(c, b))
	if err != nil {
		return err
	}
	for _, request := range requests {
		answer, err := b.Attach(c.Context, request)
		if err != nil {
			return err
		}
		for _, a := range answer.Attachments {
			e.note(c, "%s", attachedText(a))
		}
		e.notes(c, attachmentNotes(answer.Attachments))
	}
	return e.show(c, b, p, j, t)
}

// show shows what a program does until the stream ends.
func (e *Env) show(c *cli.Context, b Backend, p *output.Printer, j job, t ticks) error {
	var s stream
	var err error
	switch {
	case j.load.Object != nil:
		return e.watchStatus(c.Context, p, b, j.load.Name, t)
	case j.load.Source == podTraffic:
		s, err = e.podStream(c, b, p, j.load.Name, j.pods)
	case j.load.Source == peersProgram:
		s, err = e.peerStream(c, b, p, j.load.Name, j.peers)
	case j.load.Source == dropsProgram:
		s, err = e.dropStream(c, b, p, j.load.Name, j.drops, selection{})
	case j.load.Source == flowsProgram:
		s, err = e.flowStream(c, b, p, flowChoice{request: flow.Request{Instance: j.load.Name}, view: j.flows})
	case j.load.Source == xdpCounter:
		s, err = e.counterStream(c, b, p, j.load.Name, j.counters)
	default:
		s, err = portsStream(b, p, j.load.Name)
	}
	if err != nil {
		return err
	}
	return s.run(c.Context, t, ratesOnly(c))
}

// attachedText says what was attached where.
func attachedText(a datapath.Attachment) string {
	text := "attached " + a.Hook
	if a.DevName != nil {
		text += " to " + *a.DevName
	} else if a.Cgroup != nil {
		text += " to " + *a.Cgroup
	} else if a.Target != nil {
		text += " to " + *a.Target
	}
	if a.Mode != nil {
		text += ", " + *a.Mode
	}
	return text
}

// cleanUp detaches and unloads an instance, also when the command was
// interrupted, and returns err with what went wrong.
func cleanUp(err error, b Backend, name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), cleanupTimeout)
	defer cancel()
	_, failed := b.Unload(ctx, datapath.UnloadRequest{Name: name, Detach: true})
	if err != nil && failed != nil {
		return fmt.Errorf("%w; %w", err, failed)
	}
	return cmp.Or(err, failed)
}
