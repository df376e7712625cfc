package commands

import (
	"context"
	"net"
	"net/netip"
	"strings"

	"github.com/urfave/cli/v2"

	"bpfnet/internal/metrics"
)

// watchPort is where metrics of a watch are served unless --listen says otherwise: not
// where those of export prometheus are.
const watchPort = "9737"

func watchMetricsFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "listen", Usage: "serve metrics of the watch itself at `ADDRESS[:PORT]`, port " + watchPort + " if none is given; :PORT is all addresses", DefaultText: "they aren't"},
		webConfigFlag(),
	}
}

// checkWatchMetrics checks what --listen asks for.
func (e *Env) checkWatchMetrics(c *cli.Context) error {
	switch {
	case !c.IsSet("listen") && c.IsSet("web-config"):
		return usage(c, "--web-config is for --listen")
	case !c.IsSet("listen"):
		return nil
	case c.IsSet("replay"):
		return usage(c, "--replay and --listen exclude each other")
	}
	return e.checkServing(watchAddress(c.String("listen")), c.String("web-config"), watchPort)
}

// watchAddress is the address of --listen, with a port.
func watchAddress(text string) string {
	if ip, err := netip.ParseAddr(strings.Trim(text, "[]")); err == nil {
		return net.JoinHostPort(ip.String(), watchPort)
	}
	return text
}

// serveWatch serves what --listen asks for until end is called.
func (e *Env) serveWatch(c *cli.Context, b Backend, w *alertWatch) (end func(), err error) {
	if !c.IsSet("listen") {
		return func() {}, nil
	}
	address, webConfig := watchAddress(c.String("listen")), c.String("web-config")
	l, err := e.Listen(address)
	if err != nil {
		return nil, listenError(address, err)
	}
	e.noteListening(c, l.Addr(), webConfig)
	w.metrics = metrics.NewWatch(b, metrics.Options{Build: thisBuild(), Now: e.Now, Note: w.note}, w.sinks.set.Status)
	ctx, stop := context.WithCancel(context.WithoutCancel(c.Context)) // sinks have some seconds after an interrupt
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := w.metrics.Serve(ctx, l, webConfig); err != nil {
			w.note(err.Error())
		}
	}()
	return func() { stop(); <-ended }, nil
}
