package flow

import (
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"bpfnet/internal/sample"
)

// Loss is what the samples don't have so far.
func (w *Watch) Loss() Loss { return w.now.Loss }

// Document shows the last sample that was taken. It may be asked for again with
// another Sort and Limit.
func (w *Watch) Document() Document {
	shown, others := w.entries()
	total := w.total
	d := Document{
		Schema: Schema, Time: w.now.Time.UTC().Truncate(time.Second), Since: w.now.Since.UTC().Truncate(time.Second), IntervalSeconds: sample.Interval(w.elapsed),
		Backend: w.now.Backend, Loss: w.now.Loss, ReconcileRatio: w.kernel.ratio(), By: append([]string{}, w.By...),
		Flows: make([]Flow, len(shown)), Others: others, Total: Amount{total.flows, w.io(&total)},
	}
	values := make([]values, len(shown))
	var ends []End
	if w.grouping.directed {
		ends = make([]End, 2*len(shown))
	}
	for i, e := range shown {
		f, v := &d.Flows[i], &values[i]
		f.Attribution.Status, f.Flows, f.IO = e.status, e.flows, w.io(e)
		f.Network.Transport, f.TCP.State = known(&e.transport), known(&e.state)
		local := w.end(&e.local, v, 0)
		if ends != nil {
			f.Src, f.Dst = &ends[2*i], &ends[2*i+1]
			*f.Src, *f.Dst = local, w.end(&e.peer, v, 1)
			f.IO.onlyTransmitted()
			continue
		}
		f.Network.Local, f.Network.NetNS = local.Address, local.NetNS
		f.Network.Peer = Peer{Address{known(&e.peer.address), known(&e.peer.port)}, known(&e.name)}
		f.Process, f.User, f.Container, f.K8s = local.Process, local.User, local.Container, local.K8s
		if e.row != nil {
			v.keep(e)
			v.fill(f, e.row)
		}
	}
	return d
}

// entries are those with news, in their order, and what the limit leaves out. Later
// samples don't change them.
func (w *Watch) entries() ([]*entry, Amount) {
	c := chosen{limit: w.Limit, order: fields.Compare(w.sort())}
	for i := range w.flows {
		e := c.place()
		w.show(e, &w.flows[i])
		c.add(e)
	}
	for _, g := range w.groups {
		if g.news {
			e := c.place()
			*e = *g
			c.add(e)
		}
	}
	c.cut()
	others := Amount{c.left.flows, w.io(&c.left)}
	if w.grouping.directed {
		others.IO.onlyTransmitted()
	}
	return c.entries, others
}

// show makes an entry of a flow.
func (w *Watch) show(e *entry, n *news) {
	*e = entry{
		local: w.localParty(n.row), peer: party{address: n.row.Peer.Addr(), port: n.row.Peer.Port()},
		transport: n.row.Transport, state: sample.Value(n.row.TCP).State, row: n.row, flows: 1, news: true, status: n.row.Status,
		name: n.name, total: n.moved, grown: n.grown,
	}
}

// chosen are the first entries of many, without all of them in memory.
type chosen struct {
	limit   int // 0: none
	order   func(a, b *entry) int
	entries []*entry
	spare   []*entry
	left    entry // the sum of the others
}

// place returns an entry to be filled in.
func (c *chosen) place() *entry {
	if n := len(c.spare); n > 0 {
		e := c.spare[n-1]
		c.spare = c.spare[:n-1]
		return e
	}
	return &entry{}
}

func (c *chosen) add(e *entry) {
	const atOnce = 256 // are sorted, or as many as are shown
	c.entries = append(c.entries, e)
	if c.limit > 0 && len(c.entries) >= c.limit+max(c.limit, atOnce) {
		c.cut()
	}
}

// cut sorts the entries, and leaves those within the limit.
func (c *chosen) cut() {
	slices.SortFunc(c.entries, func(a, b *entry) int {
		if c := c.order(a, b); c != 0 {
			return c
		}
		return a.compare(b)
	})
	if c.limit == 0 || len(c.entries) <= c.limit {
		return
	}
	for _, e := range c.entries[c.limit:] {
		c.left.flows++
		c.left.total.add(e.total)
		c.left.grown.add(e.grown)
	}
	c.spare = append(c.spare, c.entries[c.limit:]...)
	c.entries = c.entries[:c.limit]
}

// known is nil for what isn't.
func known[T comparable](value *T) *T {
	var unknown T
	if *value == unknown {
		return nil
	}
	return value
}

// io are counters in documents, which keep pointers to the entry.
func (w *Watch) io(e *entry) IO {
	io := IO{
		TransmitBytes: &e.total.TransmitBytes, ReceiveBytes: &e.total.ReceiveBytes,
		TransmitCalls: &e.total.TransmitCalls, ReceiveCalls: &e.total.ReceiveCalls,
	}
	if w.elapsed > 0 {
		io.NewTransmitBytes, io.NewReceiveBytes = &e.grown.TransmitBytes, &e.grown.ReceiveBytes
		io.NewTransmitCalls, io.NewReceiveCalls = &e.grown.TransmitCalls, &e.grown.ReceiveCalls
		io.TransmitBytesPerSecond = sample.PerSecond(e.grown.TransmitBytes, w.elapsed)
		io.ReceiveBytesPerSecond = sample.PerSecond(e.grown.ReceiveBytes, w.elapsed)
	}
	return io
}

// onlyTransmitted leaves what sums by direction have.
func (io *IO) onlyTransmitted() {
	*io = IO{TransmitBytes: io.TransmitBytes, NewTransmitBytes: io.NewTransmitBytes, TransmitBytesPerSecond: io.TransmitBytesPerSecond}
}

// values has what pointers of a Flow lead to, besides those to its entry.
type values struct {
	failure, cookie string
	users           [2]string
	starts          [2]time.Time
	opened, closed  time.Time
	row             Row
	tcp             TCP
}

// Words of documents.
var (
	ipv4, ipv6      = "ipv4", "ipv6"
	byLocal, byPeer = "local", "peer"
)

// keep has the entry refer to a copy of the row, which the next sample changes.
func (v *values) keep(e *entry) {
	v.row = *e.row
	if e.row.TCP != nil {
		v.tcp = *e.row.TCP
		v.row.TCP = &v.tcp
	}
	e.row = &v.row
}

// fill fills in what only a flow that is shown by itself has.
func (v *values) fill(f *Flow, r *Row) {
	f.Network.Type = &ipv4
	if r.Family == unix.AF_INET6 {
		f.Network.Type = &ipv6
	}
	v.cookie = strconv.FormatUint(r.Cookie, 10)
	f.Process.Owners = known(&r.Owners)
	if r.Cookie < noCookie {
		f.Cookie = &v.cookie
	}
	if !r.Opened.IsZero() {
		v.opened = r.Opened.UTC()
		f.OpenedAt = &v.opened
	}
	if r.Closed != nil {
		v.closed = r.Closed.UTC()
		f.ClosedAt = &v.closed
	}
	if r.NAT.IsValid() {
		address, port := r.NAT.Addr(), r.NAT.Port()
		f.Network.NAT = &Address{&address, known(&port)}
	}
	if r.TCP != nil {
		v.fillTCP(&f.TCP, r)
	}
}

func (v *values) fillTCP(c *Connection, r *Row) {
	c.OpenedBy, c.SRTT, c.MinRTT, c.Retransmits = &byLocal, known(&r.TCP.SRTT), known(&r.TCP.MinRTT), &r.TCP.Retransmits
	if r.Inward {
		c.OpenedBy = &byPeer
	}
	if r.TCP.Error != 0 {
		if v.failure = unix.ErrnoName(unix.Errno(r.TCP.Error)); v.failure == "" {
			v.failure = strconv.FormatUint(uint64(r.TCP.Error), 10)
		}
		c.Error = &v.failure
	}
}

// end is a party in documents. The n-th of a flow has its place in the values.
func (w *Watch) end(p *party, v *values, n int) End {
	e := End{
		Address:   Address{known(&p.address), known(&p.port)},
		Process:   ProcessDoc{PID: known(&p.pid), Executable: known(&p.executable), Command: known(&p.command)},
		Container: Container{known(&p.containerID), known(&p.container)},
		K8s:       K8s{known(&p.namespace), known(&p.pod), known(&p.podUID)},
		NetNS:     known(&p.netns),
	}
	if p.start != 0 {
		v.starts[n] = w.Boot.Add(time.Duration(p.start).Truncate(tick)).UTC()
		e.Process.StartTime = &v.starts[n]
	}
	if p.isUser {
		e.User.UID = &p.uid
		v.users[n] = w.Users[p.uid]
		e.User.Name = known(&v.users[n])
	}
	return e
}

// tick is the unit of starts in /proc.
const tick = time.Second / 100
