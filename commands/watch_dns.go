package commands

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"bpfnet/internal/datapath"
	"bpfnet/internal/dns"
	"bpfnet/internal/endpoint"
	"bpfnet/internal/fault"
	"bpfnet/internal/nearest"
	"bpfnet/internal/sockets"
	"bpfnet/output"
)

// ExchangeSource is the open queries and responses that an instance of dns sees.
type ExchangeSource interface {
	Notes() []string
	// Read tells of exchanges until ctx ends, which is no error; ErrNotFound says that
	// the instance was unloaded.
	Read(ctx context.Context, how dns.Watching) error
	// Lost is how many messages were not told since the source was opened, and
	// Forgotten how many exchanges found no room.
	Lost() (uint64, error)
	Forgotten() uint64
	Counters() dns.Counters
	// Waiting is how many messages there are to read.
	Waiting() int
	Close() error
}

// answerTimeout is how long a query waits for its response unless --timeout says
// otherwise, as the system's resolver does.
const answerTimeout = 5 * time.Second

func watchDNSCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:  "dns",
		Usage: "names that are asked for, and what DNS servers answer, seen by dns",
		Description: "A line for each query with its response, when that comes, or when it didn't in the time of --timeout. " +
			"A packet that passes several places counts where it was seen first. " +
			"Messages are taken out of the ring buffer dns_events, so one process reads them at a time, also of those that watch alerts.",
		Flags: append(eventFlags("exchanges"),
			&cli.StringFlag{Name: "instance", Value: dnsProgram, Usage: "loaded instance `NAME`"},
			&cli.StringSliceFlag{Name: "name", Usage: "only names that are `NAME` or end in it after a dot, or fit it with * and ?; may be repeated"},
			&cli.StringSliceFlag{Name: "type", Usage: "only questions of the `TYPE`, as in A,AAAA"},
			&cli.StringSliceFlag{Name: "rcode", Usage: "only responses with the `CODE`, as in nxdomain,servfail"},
			&cli.BoolFlag{Name: "failed", Usage: "only what wasn't answered, or with another code than noerror"},
			&cli.StringFlag{Name: "dev", Usage: "only what passes the device `NAME`"},
			&cli.StringFlag{Name: "pod", Usage: "only what the Pod `NAMESPACE/NAME|UID` asks"},
			&cli.StringFlag{Name: "container", Usage: "only what the container `ID|NAME` asks, or the Pod that it shares its interfaces with"},
			&cli.IntFlag{Name: "pid", Usage: "only what the container or Pod of the process `N` asks", DefaultText: "all"},
			&cli.DurationFlag{Name: "timeout", Value: answerTimeout, Usage: "a query without a response in `TIME` is unanswered"},
			&cli.BoolFlag{Name: "strict", Usage: "exit 11 if messages or exchanges were lost"},
		),
		Action: func(c *cli.Context) error {
			filter, err := newDNSFilter(c)
			if err != nil {
				return err
			}
			p, b, err := env.open(c)
			if err != nil {
				return err
			}
			defer b.Close()
			return env.watchDNS(c, p, b, filter)
		},
	}
}

// dnsFilter says which exchanges are shown.
type dnsFilter struct {
	names  []*regexp.Regexp
	types  []string
	rcodes []string
	failed bool
	device string
	whose  selection
	match  func(dns.Place) bool // nil: everybody's
}

func newDNSFilter(c *cli.Context) (f dnsFilter, err error) {
	if err := args(c); err != nil {
		return f, err
	}
	if err := checkEventFlags(c); err != nil {
		return f, err
	}
	if c.Duration("timeout") <= 0 {
		return f, usage(c, "--timeout %s: it must be longer than 0", c.Duration("timeout"))
	}
	if c.Bool("dry-run") {
		return f, usage(c, "--dry-run: reading messages takes them out of the map")
	}
	f.failed, f.device = c.Bool("failed"), c.String("dev")
	if f.whose, err = selectOne(c, "dev", "pod", "container", "pid"); err != nil {
		return f, err
	}
	for _, name := range c.StringSlice("name") {
		f.names = append(f.names, namePattern(name))
	}
	for _, word := range splitWords(c, "type") {
		known := dns.TypeWord(word)
		if known == "" {
			return f, fault.New(fault.ErrUsage, "--type %q: no such type", word).Hint("%s", nearest.Hint(word, dns.TypeWords()))
		}
		f.types = append(f.types, known)
	}
	for _, word := range splitWords(c, "rcode") {
		if !dns.IsRcodeWord(strings.ToLower(word)) {
			return f, fault.New(fault.ErrUsage, "--rcode %q: no such code", word).Hint("%s", nearest.Hint(word, dns.RcodeWords()))
		}
		f.rcodes = append(f.rcodes, strings.ToLower(word))
	}
	return f, nil
}

// splitWords is what a flag was given, each time with commas between.
func splitWords(c *cli.Context, flag string) (words []string) {
	for _, value := range c.StringSlice(flag) {
		words = append(words, strings.Split(value, ",")...)
	}
	return words
}

// namePattern fits what --name does.
func namePattern(name string) *regexp.Regexp {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	pattern := strings.NewReplacer(`\*`, `.*`, `\?`, `.`).Replace(regexp.QuoteMeta(name))
	if !strings.ContainsAny(name, "*?") {
		pattern = `(.*\.)?` + pattern
	}
	return regexp.MustCompile(`^(` + pattern + `)$`)
}

// asks says whether an exchange is wanted as far as its question tells.
func (f dnsFilter) asks(x *dns.Exchange) bool {
	return (len(f.names) == 0 || slices.ContainsFunc(f.names, func(p *regexp.Regexp) bool { return p.MatchString(x.Name) })) &&
		(len(f.types) == 0 || slices.Contains(f.types, x.Type)) && (f.match == nil || f.match(x.Place))
}

// ends says the same of how it ended.
func (f dnsFilter) ends(x *dns.Exchange) bool {
	return (len(f.rcodes) == 0 || slices.Contains(f.rcodes, x.Rcode)) && (!f.failed || x.Rcode != noError)
}

// noError is the code of a response without an error.
const noError = "noerror"

// watchDNS shows exchanges until there were enough, the time is over, the command is
// interrupted or nobody reads its output any more.
func (e *Env) watchDNS(c *cli.Context, p *output.Printer, b Backend, filter dnsFilter) error {
	instance := c.String("instance")
	if filter.whose.isEndpoint() {
		var err error
		if filter.match, err = e.asksFrom(c, b, filter.whose); err != nil {
			return err
		}
	}
	w := &dnsWatch{
		stream: p.Stream(), filter: filter, owners: endpoint.NewOwners(b.Endpoints()), most: c.Uint64("count"),
		note: func(text string) { e.note(c, "note: %s", text) },
		news: newInstanceNews(b, instance, ""),
	}
	w.devices = &deviceNames{attachments: w.news.attachments}
	if err := w.look(c.Context, instance); err != nil {
		return err
	}
	source, err := b.Exchanges(c.Context, instance, c.Duration("timeout"), c.Duration("lock-timeout"), c.Bool("steal"))
	if err != nil {
		return err
	}
	defer source.Close()
	e.notes(c, source.Notes())
	w.source, w.process = source, newProcessFinder(b, "exchanges", w.note)
	ctx, stop := e.whileRead(c.Context, c.Duration("for"))
	defer stop()
	return w.run(ctx, stop, c.Bool("strict"))
}

// asksFrom says from which places an endpoint asks.
func (e *Env) asksFrom(c *cli.Context, b Backend, s selection) (func(dns.Place) bool, error) {
	one, err := e.oneEndpoint(c, b, s)
	if err != nil {
		return nil, err
	}
	_, cgroups, err := b.Endpoints().CgroupOf(one, s.ref)
	if err != nil {
		return nil, err
	}
	devices := onHost(one.Interfaces)
	return func(p dns.Place) bool {
		return cgroups[p.CgroupID] || p.FromAsker && !p.AtCgroup && devices[p.IfIndex]
	}, nil
}

// dnsWatch shows exchanges.
type dnsWatch struct {
	source  ExchangeSource
	stream  *output.Stream
	filter  dnsFilter
	devices *deviceNames
	news    *instanceNews
	owners  *endpoint.Owners
	process processFinder
	note    func(string)
	most    uint64 // how many to show; 0: all
	shown   uint64
}

// look finds out where the instance is attached, and who is behind that.
func (w *dnsWatch) look(ctx context.Context, instance string) error {
	attachments, err := w.devices.attachments(ctx)
	if err != nil {
		return notLoadedDNS(err)
	}
	w.devices.set(attachments)
	passes := func(way string) bool {
		return slices.ContainsFunc(attachments, func(a datapath.Attachment) bool { return strings.HasSuffix(a.Hook, way) })
	}
	switch {
	case len(attachments) == 0:
		w.news.detached = true
		w.note("nothing is seen: " + unseen(instance))
	case !passes("ingress") || !passes("egress"):
		w.note(fmt.Sprintf("%s is attached in one direction: where queries pass in the other, exchanges are without them or their responses; attach it with --direction both", instance))
	}
	var interfaces []uint32
	for index := range w.devices.names {
		interfaces = append(interfaces, index)
	}
	_, err = w.owners.Find(ctx, firstLook, interfaces, nil)
	if err != nil && ctx.Err() == nil {
		w.note(fmt.Sprintf("who asks is not all known: %v", err))
	}
	return nil
}

func notLoadedDNS(err error) error {
	if !errors.Is(err, fault.ErrNotFound) {
		return err
	}
	return fault.New(fault.ErrNotFound, "%w", err).Hint("%s", unseen(""))
}

// run shows exchanges until there were enough or ctx ends, and says in the end what
// isn't among them.
func (w *dnsWatch) run(ctx context.Context, stop func(), strict bool) error {
	err := w.source.Read(ctx, dns.Watching{
		Passes: w.passes(ctx),
		Begun:  func(begun []*dns.Exchange) { w.identify(ctx, begun) },
		Tell: func(told []*dns.Exchange) error {
			err := w.show(ctx, told)
			if w.most > 0 && w.shown >= w.most {
				stop()
			}
			return err
		},
		Idle: func() error {
			notes, err := w.news.look(context.WithoutCancel(ctx)) // an end is no error
			for _, note := range notes {
				w.note(note)
			}
			return notLoadedDNS(err)
		},
	})
	if err != nil {
		return err
	}
	loss, err := w.loss()
	if err != nil {
		return err
	}
	w.process.conclude()
	if loss.Malformed+loss.Incomplete > 0 {
		w.note(fmt.Sprintf("messages that couldn't be read: %d; pieces of messages whose rest wasn't seen: %d", loss.Malformed, loss.Incomplete))
	}
	if lost := loss.Messages + loss.Exchanges; lost > 0 {
		w.note(fmt.Sprintf("lost, because they weren't read fast enough or there were too many: messages: %d, exchanges: %d", loss.Messages, loss.Exchanges))
		if strict {
			return fault.New(fault.ErrLossy, "watch dns: messages were lost: %d, exchanges: %d", loss.Messages, loss.Exchanges)
		}
	}
	return nil
}

// passes says which places are those of --dev, nil without.
func (w *dnsWatch) passes(ctx context.Context) func(dns.Place) bool {
	if w.filter.device == "" {
		return nil
	}
	return func(p dns.Place) bool {
		return !p.AtCgroup && optional(w.devices.at(ctx, p.IfIndex)) == w.filter.device
	}
}

// identify finds the processes that ask, before they are gone.
func (w *dnsWatch) identify(ctx context.Context, begun []*dns.Exchange) {
	begun = slices.DeleteFunc(begun, func(x *dns.Exchange) bool { return !w.filter.asks(x) })
	packets := make([]sockets.Packet, len(begun))
	for i, x := range begun {
		packets[i] = w.packet(ctx, x)
	}
	for i, p := range w.process.find(packets, w.source.Waiting) {
		if p != nil && p.Port == begun[i].Client.Port() { // else it is the server's
			begun[i].About = newProcess(p)
		}
	}
}

// packet is the first packet of an exchange: one without ports where it isn't known
// which interface has seen it, or whose cgroup.
func (w *dnsWatch) packet(ctx context.Context, x *dns.Exchange) sockets.Packet {
	at := x.Place
	p := sockets.Packet{
		Time: x.Time, Protocol: unix.IPPROTO_UDP, Source: x.Client, Destination: x.Server,
		Ingress: at.Ingress, IfIndex: at.IfIndex, AtCgroup: at.AtCgroup, CgroupID: at.CgroupID,
	}
	if x.Transport == "tcp" {
		p.Protocol = unix.IPPROTO_TCP
	}
	if x.Status == dns.Unasked {
		p.Source, p.Destination = x.Server, x.Client
	}
	if !at.AtCgroup {
		p.NetNS = w.devices.netnsOf(ctx, at.IfIndex)
	}
	if at.AtCgroup && !at.FromAsker || !at.AtCgroup && p.NetNS == 0 {
		return sockets.Packet{}
	}
	return p
}

// show writes exchanges, all at once.
func (w *dnsWatch) show(ctx context.Context, told []*dns.Exchange) error {
	loss, err := w.loss()
	if err != nil {
		return err
	}
	for _, x := range told {
		if !w.filter.asks(x) || !w.filter.ends(x) || w.most > 0 && w.shown >= w.most {
			continue
		}
		w.shown++
		doc := w.document(ctx, x)
		doc.Loss = loss
		text, err := output.Marshal(doc)
		if err != nil {
			return err
		}
		if err := w.stream.Add(text, func() string { return dnsLine(x.Time, doc) }); err != nil {
			return err
		}
	}
	return w.stream.Flush()
}

func (w *dnsWatch) loss() (dnsLoss, error) {
	lost, err := w.source.Lost()
	counters := w.source.Counters()
	return dnsLoss{lost, w.source.Forgotten(), counters.Malformed, counters.Incomplete}, err
}

// Exchanges implements Backend.
func (s *system) Exchanges(ctx context.Context, instance string, timeout, lockTimeout time.Duration, steal bool) (ExchangeSource, error) {
	return dns.Watch(ctx, s.Engine, instance, timeout, lockTimeout, steal)
}
