package commands

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"bpfnet/internal/blocklist"
	"bpfnet/internal/bpftool"
	"bpfnet/internal/bypass"
	"bpfnet/internal/counter"
	"bpfnet/internal/datapath"
	"bpfnet/internal/drops"
	"bpfnet/internal/endpoint"
	"bpfnet/internal/engine"
	"bpfnet/internal/fault"
	"bpfnet/internal/flow"
	"bpfnet/internal/follow"
	"bpfnet/internal/maps"
	"bpfnet/internal/peers"
	"bpfnet/internal/ports"
	"bpfnet/internal/probe"
	"bpfnet/internal/sockets"
	"bpfnet/internal/traffic"
	"bpfnet/output"
)

// Env is everything outside the program that a command touches. SystemEnv binds
// the real ones; command tests bind fakes.
type Env struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer

	// Open returns what commands work on. It doesn't touch the kernel before
	// the first call that needs it.
	Open func(ctx context.Context, options Options) (Backend, error)
	// Interrupts returns a context that a signal cancels. Before it is called
	// a signal ends the process: there is nothing yet to end in order.
	Interrupts func(context.Context) context.Context
	// Resolve turns the value of --netns into a path that can be opened, unless it
	// names a Pod or a container: for these HoldNetNS does, by a process and the
	// inode of its namespace.
	Resolve   func(netns string) (path string, err error)
	HoldNetNS func(pid int, inode uint64) (path string, err error)

	Now      func() time.Time
	Getenv   func(string) string
	ReadFile func(string) ([]byte, error)
	OpenFile func(string) (io.ReadCloser, error)
	// Terminal says whether Stdout is a terminal, and how large.
	Terminal func() (columns, lines int, ok bool)
	// Keys reads keys as they are pressed, until stop puts the terminal back; false
	// if Stdin is none.
	Keys func() (pressed <-chan byte, stop func(), ok bool)
	// ReaderGone says whether nobody reads Stdout any more, as far as that can
	// be told without writing.
	ReaderGone func() bool
	// Hostname is the name of this machine.
	Hostname func() (string, error)
	// BootTime is when the machine started.
	BootTime func() (time.Time, error)
	// Executable is what a process runs that began so many nanoseconds after the
	// machine; "" if it isn't known.
	Executable func(pid uint32, start uint64) string
	// Nameservers lists the DNS servers that the machine's files name.
	Nameservers func() []netip.Addr
	// Listen listens for TCP connections.
	Listen func(address string) (net.Listener, error)
	// Interfaces lists interface names, for completion.
	Interfaces func() ([]string, error)
	// State reads what bpffs has below a root, for completion.
	State func(root string) State
}

// Options are what a backend is opened with.
type Options struct {
	datapath.Options
	Engines engine.Sockets // that are asked for names
}

// State names what is pinned, without a look at the kernel's objects.
type State interface {
	Names() ([]string, error)
	List(instance, kind string) ([]string, error)
}

// Backend is what the commands call: the datapath and the programs' own maps.
type Backend interface {
	datapath.API
	CheckTarget(datapath.AttachRequest) error
	Maps() maps.API
	Bpftool() bpftool.API
	Endpoints() endpoint.API
	// Sockets opens what says whose the sockets of packets are.
	Sockets() (sockets.API, error)
	// Follow keeps a loaded instance attached to all Pods until ctx ends, and tells
	// what happens.
	Follow(ctx context.Context, request datapath.AttachRequest, tell func(follow.Event) error) error
	Probe(ctx context.Context) probe.Report
	Bypass(ctx context.Context) bypass.Report
	SelfTest(ctx context.Context) []probe.Step
	PodTraffic(instance string) (traffic.Sampler, error)
	Peers(instance string) (peers.Sampler, error)
	Drops(instance string) (drops.Sampler, error)
	Counters(instance string) (counter.Sampler, error)
	// Flows opens samples of what processes send and receive, and says what people
	// should know of them.
	Flows(ctx context.Context, request flow.Request) (flow.Sampler, []string, error)
	// ConnectionEvents opens what happens to connections, and says what people should
	// know of it.
	ConnectionEvents(ctx context.Context, request flow.EventsRequest) (flow.EventSource, []string, error)
	// Connections lists the sockets that there are, and says what people should know of
	// them.
	Connections(ctx context.Context, request flow.CensusRequest) (flow.Census, []string, error)
	Ports(instance string) (ports.API, error)
	Blocklist() blocklist.API
	// Answers opens the answers that a loaded instance of dns sees, which one
	// reader takes out.
	Answers(ctx context.Context, instance string, lockTimeout time.Duration, steal bool) (AnswerSource, error)
	// Exchanges opens the queries and responses that a loaded instance of dns sees, as
	// Answers does; a query is to be answered within the timeout.
	Exchanges(ctx context.Context, instance string, timeout, lockTimeout time.Duration, steal bool) (ExchangeSource, error)
	// InterfaceBytes and InterfaceKinds say what the kernel knows of interfaces.
	InterfaceBytes() (datapath.InterfaceBytes, error)
	InterfaceKinds(indexes []uint32) (map[uint32]string, error)
	// LostAnswers is how many answers an instance of dns found no room for.
	LostAnswers(instance string) (uint64, error)
	Close() error
}

// printer returns the Printer of the format that was asked for.
func (e *Env) printer(c *cli.Context) (*output.Printer, error) {
	format, err := e.format(c)
	if err != nil {
		return nil, err
	}
	var options []output.Option
	if _, _, ok := e.Terminal(); ok && e.Getenv("TERM") != "dumb" {
		options = append(options, output.Terminal(e.Getenv("NO_COLOR") == ""))
	}
	return output.New(e.Stdout, format, options...), nil
}

func (e *Env) format(c *cli.Context) (output.Format, error) {
	name := e.setting(c, "output", "BPFNET_OUTPUT", string(output.FormatTable))
	switch {
	case !asBpftool(c):
		return output.ParseFormat(name)
	case c.IsSet("output") && name != string(output.FormatJSON):
		return "", usage(c, "--output %s and --json or --pretty exclude each other", name)
	case c.Bool("pretty"):
		return output.FormatPretty, nil
	}
	return output.FormatCompact, nil
}

// asBpftool says whether the user wants what bpftool prints, where it has such
// a command.
func asBpftool(c *cli.Context) bool { return c.Bool("json") || c.Bool("pretty") }

// backend opens what the command works on; close it when done. From there on a
// signal cancels the command's context.
func (e *Env) backend(c *cli.Context) (Backend, error) {
	options := Options{Options: datapath.Options{
		Root:        e.setting(c, "bpffs", "BPFNET_BPFFS", ""),
		LockTimeout: c.Duration("lock-timeout"),
		Mount:       c.Bool("mount") && !c.Bool("dry-run"),
	}}
	if options.LockTimeout < 0 {
		return nil, usage(c, "--lock-timeout %s: a time can't be negative", options.LockTimeout)
	}
	options.LockTimeout = max(options.LockTimeout, time.Millisecond) // not 0, which means the default to Open
	engines, err := e.engines(c)
	if err != nil {
		return nil, err
	}
	options.Engines = engines
	if name := c.String("netns"); name != "" {
		path, err := e.netNS(c, options, name)
		if err != nil {
			return nil, err
		}
		options.NetNS = path
	}
	c.Context = e.Interrupts(c.Context)
	return e.Open(c.Context, options)
}

// netNS turns the value of --netns into a path that can be opened. Pods and
// containers are those of the host.
func (e *Env) netNS(c *cli.Context, options Options, name string) (string, error) {
	form, value, _ := strings.Cut(name, ":")
	if form != "pod" && form != "container" {
		return e.Resolve(name)
	}
	s, err := newSelection(form, value)
	if err != nil {
		return "", err
	}
	b, err := e.Open(c.Context, options)
	if err != nil {
		return "", err
	}
	defer b.Close()
	one, err := e.oneEndpoint(c, b, s)
	if err != nil {
		return "", err
	}
	if one.NetNS == nil {
		return "", closedNetwork(one)
	}
	return e.HoldNetNS(one.Process.PID, *one.NetNS)
}

// engines returns the sockets of engines. What the environment has for other tools
// counts where it is a unix socket.
func (e *Env) engines(c *cli.Context) (engine.Sockets, error) {
	sockets := engine.Sockets{User: e.Getenv("XDG_RUNTIME_DIR")}
	for _, s := range []struct {
		path           *string
		flag, variable string
	}{
		{&sockets.CRI, "cri-socket", "CONTAINER_RUNTIME_ENDPOINT"},
		{&sockets.Docker, "docker-socket", "DOCKER_HOST"},
	} {
		text := e.setting(c, s.flag, s.variable, "")
		path, ok := engine.ParseSocket(text)
		if !ok && c.IsSet(s.flag) {
			return sockets, fault.New(fault.ErrUsage, "--%s %q isn't a unix socket", s.flag, text).Hint("give a path, or unix://PATH")
		}
		*s.path = path
	}
	return sockets, nil
}

// open returns what most commands begin with: the printer, and the backend,
// which has to be closed.
func (e *Env) open(c *cli.Context) (*output.Printer, Backend, error) {
	p, err := e.printer(c)
	if err != nil {
		return nil, nil, err
	}
	b, err := e.backend(c)
	return p, b, err
}

// setting is the value of a global flag, else of its environment variable, else
// the default.
func (e *Env) setting(c *cli.Context, flag, variable, byDefault string) string {
	if c.IsSet(flag) {
		return c.String(flag)
	}
	if value := e.Getenv(variable); value != "" {
		return value
	}
	return byDefault
}

// note tells the user something that isn't the result, unless --quiet.
func (e *Env) note(c *cli.Context, format string, args ...any) {
	if !c.Bool("quiet") {
		fmt.Fprintln(e.Stderr, output.Escape(fmt.Sprintf(format, args...)))
	}
}

// notes tells the user several things.
func (e *Env) notes(c *cli.Context, notes []string) {
	for _, n := range notes {
		e.note(c, "note: %s", n)
	}
}

// done is what a writer says about itself besides its document.
type done struct {
	changed      bool
	did, already string
	notes        []string
}

// done tells people, on stderr, what a writer did. Programs read it in the
// document.
func (e *Env) done(c *cli.Context, p *output.Printer, d done) {
	if p.Format() != output.FormatTable {
		return
	}
	switch {
	case !d.changed:
		e.note(c, "unchanged: %s", d.already)
	case c.Bool("dry-run"):
		e.note(c, "dry run: would have %s", d.did)
	default:
		e.note(c, "%s", d.did)
	}
	e.notes(c, d.notes)
}

// list makes a nil slice an empty one, which is [] in JSON and not null.
func list[T any](items []T) []T {
	if items == nil {
		return []T{}
	}
	return items
}
