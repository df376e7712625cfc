package commands

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"bpfnet/internal/blocklist"
	"bpfnet/internal/bpftool"
	"bpfnet/internal/bypass"
	"bpfnet/internal/counter"
	"bpfnet/internal/datapath"
	"bpfnet/internal/dns"
	"bpfnet/internal/drops"
	"bpfnet/internal/endpoint"
	"bpfnet/internal/engine"
	"bpfnet/internal/fault"
	"bpfnet/internal/flow"
	"bpfnet/internal/follow"
	"bpfnet/internal/maps"
	"bpfnet/internal/netns"
	"bpfnet/internal/peers"
	"bpfnet/internal/ports"
	"bpfnet/internal/probe"
	"bpfnet/internal/sockets"
	"bpfnet/internal/traffic"
	"bpfnet/pinned"
)

// Main runs the command line of this process and returns its exit code.
func Main() int {
	signal.Ignore(syscall.SIGPIPE) // a closed pipe is an error of the write
	log.SetOutput(io.Discard)      // net/http logs what engines do wrong
	return Run(context.Background(), SystemEnv(), os.Args[1:])
}

// untilSignal lets SIGINT, SIGTERM and SIGHUP end the command in order.
// Further ones don't disturb it, because timeout(1) and terminals may send the
// same signal twice: nothing is stopped before the process ends.
func untilSignal(ctx context.Context) context.Context {
	ctx, _ = signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	return ctx
}

// SystemEnv binds Env to this process, its kernel and its bpffs.
func SystemEnv() *Env {
	return &Env{
		Stdin:       os.Stdin,
		Stdout:      os.Stdout,
		Stderr:      os.Stderr,
		Open:        openSystem,
		Interrupts:  untilSignal,
		Resolve:     netns.Resolve,
		HoldNetNS:   netns.Hold,
		Now:         time.Now,
		Getenv:      os.Getenv,
		ReadFile:    readFile,
		OpenFile:    openFile,
		Terminal:    stdoutTerminal,
		Keys:        func() (<-chan byte, func(), bool) { return terminalKeys(int(os.Stdin.Fd())) },
		ReaderGone:  stdoutReaderGone,
		Hostname:    os.Hostname,
		BootTime:    endpoint.BootTime,
		Executable:  endpoint.Executable,
		Nameservers: dns.Servers,
		Listen:      func(address string) (net.Listener, error) { return net.Listen("tcp", address) },
		Interfaces:  interfaceNames,
		State:       func(root string) State { return pinned.Root(root) },
	}
}

// mostFile bounds files that are read as a whole, in bytes: objects are smaller.
const mostFile = 64 << 20

// readFile reads a file, which may be a pipe, or something without an end.
func readFile(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	content, err := io.ReadAll(io.LimitReader(file, mostFile+1))
	if err == nil && len(content) > mostFile {
		return nil, fault.New(fault.ErrUsage, "larger than %d MiB", mostFile>>20)
	}
	return content, err
}

func stdoutTerminal() (columns, lines int, ok bool) {
	fd := int(os.Stdout.Fd())
	if !term.IsTerminal(fd) {
		return 0, 0, false
	}
	columns, lines, err := term.GetSize(fd)
	if err != nil || columns <= 0 || lines <= 0 {
		columns, lines = 80, 24
	}
	return columns, lines, true
}

// stdoutReaderGone looks whether the other end of a pipe, socket or terminal is
// closed.
func stdoutReaderGone() bool {
	set := []unix.PollFd{{Fd: int32(os.Stdout.Fd())}} // no events: errors and the end always count
	_, err := unix.Poll(set, 0)
	return err == nil && set[0].Revents&(unix.POLLERR|unix.POLLHUP) != 0
}

func interfaceNames() ([]string, error) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	names := make([]string, len(interfaces))
	for i, in := range interfaces {
		names[i] = in.Name
	}
	return names, nil
}

// system is the Backend of a real kernel.
type system struct {
	*datapath.Engine
	root        string
	netns       string
	lockTimeout time.Duration
	engines     engine.Sockets
}

func openSystem(_ context.Context, options Options) (Backend, error) {
	if err := enoughFiles(); err != nil {
		return nil, err
	}
	if options.Root == "" {
		options.Root = pinned.DefaultRoot
	}
	kernel, err := datapath.Open(options.Options)
	if err != nil {
		return nil, err
	}
	return &system{Engine: kernel, root: options.Root, netns: options.NetNS, lockTimeout: options.LockTimeout, engines: options.Engines}, nil
}

// leastFiles is how many open files a command may need that loads nothing. With
// less, Go's runtime gives up in the middle.
const leastFiles = 16

func enoughFiles() error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || limit.Cur >= leastFiles {
		return nil
	}
	return fmt.Errorf("the limit of open files is %d, less than %d: %w", limit.Cur, leastFiles, unix.EMFILE)
}

func (s *system) Bpftool() bpftool.API                     { return bpftool.New(s.root, s.netns) }
func (s *system) Endpoints() endpoint.API                  { return endpoint.New(s.netns, s.engines) }
func (s *system) Sockets() (sockets.API, error)            { return sockets.NewFinder(s.netns) }
func (s *system) Probe(ctx context.Context) probe.Report   { return probe.Run(ctx, s.root) }
func (s *system) Bypass(ctx context.Context) bypass.Report { return bypass.Find(ctx, s.Bpftool()) }
func (s *system) SelfTest(ctx context.Context) []probe.Step {
	return append(probe.SelfTest(ctx), flow.SelfTest(ctx, s.Engine)...)
}
func (s *system) Blocklist() blocklist.API { return blocklist.New(s.Engine).ResolveWith(s.resolver) }
func (s *system) Close() error             { return nil }

func (s *system) Follow(ctx context.Context, request datapath.AttachRequest, tell func(follow.Event) error) error {
	f := follow.Follower{API: s.Engine, Endpoints: endpoint.New(s.netns, s.engines), Request: request, NetNS: s.netns, Tell: tell}
	loaded, err := s.Instances(ctx, request.Name)
	if err != nil {
		return err
	}
	if loaded[0].Builtin && loaded[0].Source == podTraffic {
		f.Counters = traffic.NewReader(s.Engine, request.Name)
	}
	return f.Run(ctx)
}

func (s *system) resolver() (blocklist.Resolver, error) {
	return dns.NewResolver(resolvConf(s.netns), s.netns)
}

// resolvConf is the resolv.conf of a network namespace: that of its name in
// /etc/netns, as in ip-netns(8), or else "" for the system's.
func resolvConf(netns string) string {
	name, named := strings.CutPrefix(netns, "/run/netns/")
	path := filepath.Join("/etc/netns", name, "resolv.conf")
	if _, err := os.Stat(path); !named || err != nil {
		return ""
	}
	return path
}

func (s *system) Maps() maps.API {
	store := maps.New(s.root)
	store.LockTimeout = s.lockTimeout
	return store
}

func (s *system) PodTraffic(instance string) (traffic.Sampler, error) {
	return traffic.NewReader(s.Engine, instance), nil
}

func (s *system) Peers(instance string) (peers.Sampler, error) {
	return peers.NewReader(s.Engine, instance), nil
}

func (s *system) Drops(instance string) (drops.Sampler, error) {
	return drops.NewReader(s.Engine, instance), nil
}

func (s *system) Counters(instance string) (counter.Sampler, error) {
	return counter.NewReader(s.Engine, instance), nil
}

func (s *system) Flows(ctx context.Context, request flow.Request) (flow.Sampler, []string, error) {
	return flow.Open(ctx, s.Engine, request)
}

func (s *system) ConnectionEvents(ctx context.Context, request flow.EventsRequest) (flow.EventSource, []string, error) {
	return flow.OpenEvents(ctx, s.Engine, request)
}

func (s *system) Connections(ctx context.Context, request flow.CensusRequest) (flow.Census, []string, error) {
	return flow.TakeCensus(ctx, request)
}

func (s *system) LostAnswers(instance string) (uint64, error) { return dns.Lost(s.Engine, instance) }

func (s *system) Ports(instance string) (ports.API, error) {
	return ports.NewFilter(s.Engine, instance), nil
}
