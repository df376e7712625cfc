package commands

import (
	"context"
	"fmt"
	"iter"
	"net"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/urfave/cli/v2"

	"bpfnet/internal/endpoint"
	"bpfnet/internal/fault"
	"bpfnet/internal/flow"
	"bpfnet/internal/traffic"
	"bpfnet/output"
)

const flowsProgram = "flows"

// What flags take.
var (
	flowBackends   = []string{"tp_btf", "fexit", "kprobe", "sock_diag"}
	flowTransports = []string{"tcp", "mptcp", "udp", "udplite", "sctp", "icmp", "raw"}
)

func watchFlowsCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:  "flows",
		Usage: "what each process sends and receives, through which socket, and with whom",
		Description: "The first document has all that is counted, each later one the flows with news since the one before. " +
			"--once waits for the --interval and shows what was moved in it; with --since-load it shows at once what was moved since counting began. " +
			byDescription(),
		Flags: append(append(flowFlags("", flow.DefaultSort), tickFlags(watchInterval)...),
			&cli.BoolFlag{Name: "since-load", Usage: "with --once: what was moved since counting began"},
			&cli.BoolFlag{Name: "names", Usage: "show peers by the names that were asked for, as seen by dns, whose answers one process reads at a time"},
			&cli.BoolFlag{Name: "steal", Usage: "with --names: read answers although another process does"},
		),
		Action: func(c *cli.Context) error {
			choice, err := readFlowChoice(c)
			if err != nil {
				return err
			}
			once, sinceLoad := c.Bool("once"), c.Bool("since-load")
			switch {
			case sinceLoad && !once:
				return usage(c, "--since-load is for --once; without it the first document has what was moved since counting began")
			case sinceLoad && c.IsSet("interval"):
				return usage(c, "--since-load and --interval exclude each other")
			case c.Bool("names") && len(choice.view.By) > 0 && !slices.Contains(choice.view.By, "peer"):
				return usage(c, "--names: of sums only those by peer have names")
			case c.Bool("steal") && !c.Bool("names"):
				return usage(c, "--steal is for --names")
			}
			return env.watch(c, func(b Backend, p *output.Printer) (stream, error) {
				s, err := env.flowStream(c, b, p, choice)
				s.ratesOnly = once && !sinceLoad
				return s, err
			})
		},
	}
}

// flowGarbage is the part of the memory in use, in percent, that is let lie before it is
// collected: what is kept of each flow lives long, and there is little garbage.
const flowGarbage = 30

// flowStream shows flows.
func (e *Env) flowStream(c *cli.Context, b Backend, p *output.Printer, choice flowChoice) (stream, error) {
	var names *peerNames
	if c.Bool("names") {
		var err error
		if names, err = e.learnNames(c, b); err != nil {
			return stream{}, err
		}
		choice.view.Name = names.of
	}
	s, err := e.openFlows(c, b, choice)
	if err != nil {
		names.close()
		return stream{}, err
	}
	s.printer, s.names, s.forgives = p, names, !c.Bool("since-load")
	s.readKeys()
	if e.Getenv("GOGC") == "" {
		debug.SetGCPercent(flowGarbage)
	}
	return stream{sample: s.sample, show: s.show, close: s.close}, nil
}

func byDescription() string {
	return "--by groups flows by what they have in common: " + strings.Join(flow.Dimensions(), ", ") + "."
}

// flowFlags choose flows, and how they are shown.
func flowFlags(by, sort string) []cli.Flag {
	const others = "; the others aren't counted"
	return []cli.Flag{
		&cli.StringFlag{Name: "instance", Value: flowsProgram, Usage: "loaded instance `NAME`; if there is none, counting begins now"},
		&cli.StringFlag{Name: "by", Value: by, DefaultText: by, Usage: "sum by `DIMENSIONS`, with commas between them, as in process,peer"},
		&cli.StringFlag{Name: "sort", Value: sort, Usage: "`FIELD` to sort by; -FIELD is descending; fields: " + strings.Join(flow.SortFields(), ", ")},
		&cli.IntFlag{Name: "limit", DefaultText: noLimit, Usage: "show the first `N`, the rest counts as others"},
		&cli.UintFlag{Name: "pid", DefaultText: "all", Usage: "only the process `N`" + others},
		&cli.StringFlag{Name: "container", Usage: "only the container `ID|NAME`" + others},
		&cli.StringFlag{Name: "pod", Usage: "only the Pod `NAMESPACE/NAME|UID`" + others},
		&cli.StringFlag{Name: "cgroup", Usage: "only the cgroup `DIR` and those below it" + others},
		&cli.StringFlag{Name: "proto", Usage: "only the `TRANSPORTS`, of " + strings.Join(flowTransports, ", ") + " or numbers, with commas between them" + others},
		&cli.StringFlag{Name: "port", Usage: "only the local or peer's `PORTS`, with commas between them" + others},
		&cli.StringFlag{Name: "peer", Usage: "only peers in the `PREFIX`" + others},
		&cli.StringFlag{Name: "backend", DefaultText: "the best that works", Usage: "count by a `MECHANISM`: " + strings.Join(flowBackends, ", ")},
		&cli.BoolFlag{Name: "strict", Usage: "end with exit 11 when something is lost"},
	}
}

// flowChoice is what is asked for.
type flowChoice struct {
	request flow.Request
	view    flow.View
	whose   selection
}

func readFlowChoice(c *cli.Context) (choice flowChoice, err error) {
	view := &choice.view
	view.Sort, view.Limit = c.String("sort"), c.Int("limit")
	view.By = commaWords(c.String("by"))
	if err := view.Check(); err != nil {
		return choice, err
	}
	if choice.whose, err = selectOne(c, "pid", "container", "pod", "cgroup"); err != nil {
		return choice, err
	}
	if view.Peer, err = prefixOf(c, "peer"); err != nil {
		return choice, err
	}
	if view.Filter, err = readFlowFilter(c); err != nil {
		return choice, err
	}
	choice.request = flow.Request{Instance: c.String("instance"), Filter: view.Filter, Backend: c.String("backend")}
	if choice.request.Backend != "" {
		_, err = oneOf("backend", choice.request.Backend, flowBackends...)
	}
	return choice, err
}

// readFlowFilter reads the filters that name no endpoint.
func readFlowFilter(c *cli.Context) (f flow.Filter, err error) {
	if c.IsSet("pid") {
		f.PIDs = []uint32{uint32(c.Uint("pid"))}
	}
	for _, word := range commaWords(c.String("proto")) {
		if _, err := strconv.ParseUint(word, 10, 8); err != nil {
			if _, err := oneOf("proto", word, flowTransports...); err != nil {
				return f, err
			}
		}
		f.Transports = append(f.Transports, flow.TransportName(word))
	}
	for _, word := range commaWords(c.String("port")) {
		port, err := strconv.ParseUint(word, 10, 16)
		if err != nil || port == 0 {
			return f, usage(c, "--port %q: not a port", word)
		}
		f.Ports = append(f.Ports, uint16(port))
	}
	return f, nil
}

// commaWords are those of a list with commas.
func commaWords(list string) []string {
	if list == "" {
		return nil
	}
	return strings.Split(list, ",")
}

// flowWatch shows flows.
type flowWatch struct {
	env     *Env
	c       *cli.Context
	sampler flow.Sampler
	news    *instanceNews // nil: it counts for itself
	owners  *podOwners
	names   *peerNames      // nil: peers have none
	printer *output.Printer // of tables that are redrawn

	forgives bool      // --strict is about what is lost after the first sample alone, which is to come
	forgiven flow.Loss // what was lost before

	mu       sync.Mutex // for keys: of what follows
	watch    *flow.Watch
	limit    int  // that was asked for
	taken    bool // a sample, and no other one is being taken
	stopKeys func()
	keys     bool // are read
}

// openFlows opens samples of what is asked for; close it when done.
func (e *Env) openFlows(c *cli.Context, b Backend, choice flowChoice) (*flowWatch, error) {
	s := &flowWatch{env: e, c: c, owners: newPodOwners(b.Endpoints()), limit: choice.view.Limit}
	view := choice.view
	if err := e.flowsOf(c, b, choice.whose, &choice.request.Filter, &view); err != nil {
		return nil, err
	}
	boot, err := e.BootTime()
	if err != nil {
		return nil, err
	}
	view.Boot, view.Executable, view.Users = boot, e.Executable, e.users()
	view.Owner, view.OwnerAt = s.owners.Cgroup, s.owners.Address
	if choice.request.Backend != flow.Polling {
		s.news = e.flowNews(c, b, choice.request.Instance)
	}
	sampler, notes, err := b.Flows(c.Context, choice.request)
	if err != nil {
		return nil, err
	}
	e.notes(c, notes)
	s.sampler, s.watch = sampler, flow.NewWatch(view)
	return s, nil
}

// flowsOf has only flows counted, and shown, of who is selected.
func (e *Env) flowsOf(c *cli.Context, b Backend, whose selection, filter *flow.Filter, view *flow.View) error {
	var cgroup endpoint.Cgroup
	var below func() map[uint64]bool
	switch whose.flag {
	case "cgroup":
		found, err := endpoint.OpenCgroup(whose.value)
		if err != nil {
			return err
		}
		cgroup, below = found, found.IDs
	case "container", "pod":
		one, err := e.oneEndpoint(c, b, whose)
		if err != nil {
			return err
		}
		if cgroup, _, err = b.Endpoints().CgroupOf(one, whose.ref); err != nil {
			return err
		}
		if cgroup.ID == nil {
			return fault.New(fault.ErrUnsupported, "the cgroup %s of %s is not below a cgroup2 mount", cgroup.Path, endpointName(one)).
				Hint("--pid %d has the flows of one process", one.Process.PID)
		}
		below = func() map[uint64]bool {
			_, ids, _ := b.Endpoints().CgroupOf(one, whose.ref) // it was there
			return ids
		}
	default:
		return nil
	}
	filter.Cgroups = []uint64{*cgroup.ID}
	known := below()
	view.InCgroup = func(id uint64) bool {
		in, ok := known[id]
		if !ok { // it may be new
			in = below()[id]
			known[id] = in
		}
		return in
	}
	return nil
}

// users are the names of /etc/passwd.
func (e *Env) users() map[uint32]string {
	names := map[uint32]string{}
	text, _ := e.ReadFile("/etc/passwd") // without it there are numbers
	for line := range strings.Lines(string(text)) {
		fields := strings.SplitN(line, ":", 4)
		if len(fields) < 4 {
			continue
		}
		uid, err := strconv.ParseUint(fields[2], 10, 32)
		if _, twice := names[uint32(uid)]; err == nil && !twice {
			names[uint32(uid)] = fields[0]
		}
	}
	return names
}

func (s *flowWatch) sample(ctx context.Context) error {
	s.mu.Lock()
	s.taken = false // no key draws what changes now
	s.mu.Unlock()
	notes, err := s.news.look(ctx)
	if err != nil {
		return err
	}
	s.env.notes(s.c, notes)
	next, err := s.sampler.Sample(ctx)
	if err != nil {
		return err
	}
	if s.names != nil {
		s.names.catchUp()
	}
	s.env.notes(s.c, s.owners.find(ctx, cgroupsOf(next.Rows)))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watch.Take(next)
	if s.forgives {
		s.forgiven, s.forgives = next.Loss, false
	}
	s.taken = true
	return nil
}

// cgroupsOf are the places that rows have their owners by.
func cgroupsOf(rows []flow.Row) iter.Seq[traffic.Key] {
	return func(yield func(traffic.Key) bool) {
		seen, last := map[uint64]bool{0: true}, uint64(0)
		for i := range rows {
			id := rows[i].Cgroup
			if id == last {
				continue
			}
			if last = id; !seen[id] && !yield(traffic.Key{Point: traffic.Cgroup, CgroupID: id}) {
				return
			}
			seen[id] = true
		}
	}
}

func (s *flowWatch) show() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.draw(); err != nil {
		return err
	}
	return s.lossy()
}

// Lines of a terminal that aren't for rows: the header, others and two of losses, the
// keys or the total, and the one below with the cursor.
const linesBeside = 6

// fitting is how many rows of so many, 0 for all, there is room for on a terminal.
func fitting(limit, lines int) int {
	most := max(1, lines-linesBeside)
	if limit > 0 {
		return min(limit, most)
	}
	return most
}

func (s *flowWatch) draw() error {
	columns, lines, _ := s.env.Terminal()
	if s.printer.Redraws() {
		s.watch.Limit = fitting(s.limit, lines)
	}
	doc := s.watch.Document()
	return s.printer.Event(doc, func() output.Table {
		t := flowTable(doc)
		if !s.printer.Redraws() {
			return t
		}
		t = t.Fit(columns, flowDrops...)
		if s.keys {
			t.Below = "t transmit  r receive  p process  c connections  q quit"
		}
		return t
	})
}

// lossy is an error if something was lost that mustn't be.
func (s *flowWatch) lossy() error {
	loss := s.watch.Loss()
	if !s.c.Bool("strict") || loss == s.forgiven {
		return nil
	}
	return fault.New(fault.ErrLossy, "%s: lost: records of closed flows: %d, flows that found no room: %d, calls that weren't seen: %d, bytes of nobody that is known: %d",
		commandName(s.c), loss.Events, loss.MapFull, loss.Missed, loss.Unattributed)
}

func (s *flowWatch) close() {
	if s.stopKeys != nil {
		s.stopKeys()
	}
	s.names.close()
	_ = s.sampler.Close() // it was only read
}

// flowKeys are what sorts by what.
var flowKeys = map[byte]string{
	't': "-io.new_transmit_bytes", 'r': "-io.new_receive_bytes", 'p': "process.command", 'c': "-flows",
}

// readKeys sorts, and ends, by keys while tables are redrawn.
func (s *flowWatch) readKeys() {
	if !s.printer.Redraws() {
		return
	}
	pressed, stop, ok := s.env.Keys()
	if !ok {
		return
	}
	ctx, cancel := context.WithCancel(s.c.Context)
	s.c.Context, s.keys = ctx, true
	var reads sync.WaitGroup
	s.stopKeys = func() {
		cancel()
		reads.Wait()
		stop()
	}
	reads.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case key := <-pressed:
				s.press(key, cancel)
			}
		}
	})
}

func (s *flowWatch) press(key byte, quit func()) {
	sort, known := flowKeys[key]
	switch {
	case key == 'q':
		quit()
	case known:
		s.mu.Lock()
		defer s.mu.Unlock()
		s.watch.Sort = sort
		if s.taken && s.c.Context.Err() == nil {
			_ = s.draw() // the next sample meets the same error
		}
	}
}

// Cells of the table.

func processText(p flow.ProcessDoc) string {
	switch {
	case p.PID == nil:
		return optional(p.Command)
	case p.Command == nil:
		return strconv.FormatUint(uint64(*p.PID), 10)
	}
	return fmt.Sprintf("%s/%d", *p.Command, *p.PID)
}

func userText(u flow.User) string {
	if u.Name == nil && u.UID != nil {
		return strconv.FormatUint(uint64(*u.UID), 10)
	}
	return optional(u.Name)
}

func containerText(c flow.Container) string {
	if c.Name == nil && c.ID != nil {
		return shortened(*c.ID)
	}
	return optional(c.Name)
}

func addressText(a flow.Address) string {
	switch {
	case a.Address == nil && a.Port == nil:
		return ""
	case a.Address == nil:
		return ":" + strconv.Itoa(int(*a.Port))
	case a.Port == nil:
		return a.Address.String()
	}
	return net.JoinHostPort(a.Address.String(), strconv.Itoa(int(*a.Port)))
}

func peerText(f *flow.Flow, _ []string) string {
	peer, nat := peerOf(f.Network)
	return strings.TrimSpace(peer + " " + nat)
}

// peerOf is the peer's name or address, and whom it was translated to behind a sign.
func peerOf(n flow.Network) (text, nat string) {
	peer := n.Peer
	text = addressText(peer.Address)
	if peer.Name != nil {
		text = shortName(*peer.Name)
		if peer.Port != nil {
			text += ":" + strconv.Itoa(int(*peer.Port))
		}
	}
	if n.NAT != nil {
		nat = "= " + addressText(*n.NAT)
	}
	return text, nat
}

// mostName is how much of a name tables show, so that there is room for the rest.
const mostName = 30

// shortName leaves the end of a name, which says most of whose it is.
func shortName(name string) string {
	if len(name) <= mostName {
		return name
	}
	return "…" + name[len(name)-mostName+1:]
}

// partyText is what is known of one end of a sum by direction, of what it is by.
func partyText(e *flow.End, side string, by []string) string {
	if e == nil {
		return ""
	}
	var parts []string
	for _, part := range []struct{ by, text string }{
		{"pod container", podName(e.K8s.Namespace, e.K8s.Pod, e.K8s.PodUID)}, {"container", containerText(e.Container)},
		{"process command", processText(e.Process)}, {"executable", optional(e.Process.Executable)}, {"user", userText(e.User)},
		{"netns", netnsText(e.NetNS)}, {"address port", addressText(e.Address)},
	} {
		asked := slices.ContainsFunc(strings.Fields(part.by), func(word string) bool { return slices.Contains(by, side+word) })
		if asked && part.text != "" {
			parts = append(parts, part.text)
		}
	}
	return strings.Join(parts, " ")
}

func bytesCell(n *uint64) string {
	if n == nil {
		return ""
	}
	return output.Bytes(*n)
}

func rttText(f *flow.Flow, _ []string) string {
	if f.TCP.SRTT == nil {
		return ""
	}
	if us := *f.TCP.SRTT; us < 1000 {
		return fmt.Sprintf("%d us", us)
	}
	return fmt.Sprintf("%.1f ms", float64(*f.TCP.SRTT)/1000)
}

// inexact is how the flow was counted, unless it is exact.
func inexact(f *flow.Flow, _ []string) string {
	if f.Attribution.Status == flow.Exact {
		return ""
	}
	return string(f.Attribution.Status)
}

func netnsText(inode *uint64) string { return optional(textOf(inode)) }
