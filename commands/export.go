package commands

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"sync"
	"syscall"

	"github.com/urfave/cli/v2"

	"bpfnet/internal/fault"
	"bpfnet/internal/metrics"
)

const (
	// exportPort is where metrics are served unless --listen says otherwise.
	exportPort    = "9736"
	defaultListen = "127.0.0.1:" + exportPort
	// defaultPodSeries is far above the Pods that a node may have.
	defaultPodSeries = 5000
)

func exportCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:        "export",
		Usage:       "give what loaded programs count to other systems, for as long as it runs",
		Subcommands: []*cli.Command{exportPrometheusCommand(env)},
	}
}

func exportPrometheusCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:        "prometheus",
		Usage:       "serve metrics of all that is loaded, also meanwhile, to Prometheus",
		Description: "While it runs, domains on lists are asked for when it is time, unless another process does so.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "listen", Value: defaultListen, Usage: "listen at `ADDRESS:PORT`; :PORT is all addresses, port 0 any that is free"},
			webConfigFlag(),
			&cli.IntFlag{Name: "max-series", Value: defaultPodSeries, Usage: "`N` interfaces and cgroups of Pods have series of their own, the rest counts as other"},
			&cli.BoolFlag{Name: "run-stats", Usage: "have the kernel count runs and run time of BPF programs meanwhile, of all of them, which makes each run cost more"},
		},
		Action: env.exportPrometheus,
	}
}

func (e *Env) exportPrometheus(c *cli.Context) (err error) {
	if err := args(c); err != nil {
		return err
	}
	if _, err := e.printer(c); err != nil { // there are no documents, but errors have a format
		return err
	}
	if c.Int("max-series") < 0 {
		return usage(c, "--max-series %d: a number of series can't be negative", c.Int("max-series"))
	}
	address, webConfig := c.String("listen"), c.String("web-config")
	if err := e.checkServing(address, webConfig, exportPort); err != nil {
		return err
	}
	b, err := e.backend(c)
	if err != nil {
		return err
	}
	defer b.Close()
	if c.Bool("run-stats") {
		stop, err := b.EnableStats()
		if err != nil {
			return err
		}
		defer func() { err = fault.Join(err, stop()) }()
	}
	var one sync.Mutex // scrapes, the server and what keeps domains up to date tell notes
	note := func(text string) {
		one.Lock()
		defer one.Unlock()
		e.note(c, "note: %s", text)
	}
	exporter := metrics.New(b, metrics.Options{Build: thisBuild(), Most: c.Int("max-series"), Now: e.Now, Note: note})
	l, err := e.Listen(address)
	if err != nil {
		return listenError(address, err)
	}
	defer l.Close()
	if err := exporter.Begin(c.Context); err != nil {
		return err
	}
	e.noteListening(c, l.Addr(), webConfig)
	ctx, stop := context.WithCancel(c.Context)
	var working sync.WaitGroup
	working.Go(func() {
		refreshDomains(ctx, b.Blocklist(), func(format string, args ...any) { note(fmt.Sprintf(format, args...)) })
	})
	defer working.Wait()
	defer stop()
	return exporter.Serve(c.Context, l, webConfig)
}

func webConfigFlag() cli.Flag {
	return &cli.StringFlag{Name: "web-config", Usage: "`FILE` with TLS and passwords, in the format of Prometheus' exporters", DefaultText: "neither"}
}

// checkServing refuses what metrics can't be served by; port is the usual one.
func (e *Env) checkServing(address, webConfig, port string) error {
	if err := checkListen(address, port); err != nil || webConfig == "" {
		return err
	}
	return e.checkWebConfig(webConfig)
}

// checkListen refuses what isn't an address and a port.
func checkListen(address, usual string) error {
	host, port, err := net.SplitHostPort(address)
	if err == nil {
		_, err = net.LookupPort("tcp", port)
	}
	if err == nil && host != "" {
		_, err = netip.ParseAddr(host)
	}
	if err != nil {
		return fault.New(fault.ErrUsage, "--listen %q isn't an address and a port", address).
			Hint("127.0.0.1:%[1]s, [::1]:%[1]s, or :%[1]s for all addresses", usual)
	}
	return nil
}

func (e *Env) checkWebConfig(path string) error {
	if _, err := e.ReadFile(path); err != nil {
		kind := fault.ErrUsage
		switch {
		case errors.Is(err, fs.ErrNotExist):
			kind = fault.ErrNotFound
		case errors.Is(err, fs.ErrPermission):
			kind = fault.ErrPermission
		}
		return fault.New(kind, "read web configuration: %w", err)
	}
	return metrics.CheckWebConfig(path)
}

// listenError says why an address can't be listened at.
func listenError(address string, err error) error {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return fmt.Errorf("listen at %s: %w", address, err)
	}
	switch errno {
	case syscall.EADDRINUSE:
		return fault.New(fault.ErrConflict, "listen at %s: %w", address, errno).Hint("ss -ltnp   shows by whom")
	case syscall.EADDRNOTAVAIL:
		return fault.New(fault.ErrNotFound, "listen at %s: %w", address, errno).Hint("ip address   shows the addresses of this machine")
	case syscall.EACCES:
		return fault.New(fault.ErrPermission, "listen at %s: %w", address, errno).Hint("ports below 1024 take CAP_NET_BIND_SERVICE")
	}
	return fmt.Errorf("listen at %s: %w", address, errno)
}

// noteListening tells where metrics are, and who can read them.
func (e *Env) noteListening(c *cli.Context, at net.Addr, webConfig string) {
	e.note(c, "note: metrics are served at %s, path /metrics, until interrupted", at)
	tcp, ok := at.(*net.TCPAddr)
	if ok && !tcp.IP.IsLoopback() && webConfig == "" {
		e.note(c, "note: anybody who reaches this address can read them; --web-config adds TLS and passwords")
	}
}

func thisBuild() metrics.Build {
	v := readVersion()
	return metrics.Build{Version: v.Version, Revision: optional(v.Revision), Go: v.Go}
}
