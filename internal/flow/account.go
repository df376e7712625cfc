package flow

import (
	"slices"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"bpfnet/internal/sockets"
)

// amounts are bytes that an application has moved.
type amounts struct{ transmit, receive uint64 }

func (a amounts) minus(b amounts) amounts {
	return amounts{a.transmit - b.transmit, a.receive - b.receive}
}

// account is what is known of a socket.
type account struct {
	socket    sockets.Socket
	transport string
	opened    time.Time // zero: before counting began
	inward    bool
	tcp       *TCP    // nil: no TCP
	moved     amounts // since it was made
	shares    []share // of processes that had it one after the other; the last one has it now
	first     [1]share
	seen      uint32 // the last survey that has it
	place     int    // among all accounts
	asked     bool   // whose it is was looked for
	sided     bool   // it is known who opened the connection
	changed   bool   // since its rows were made

	// What the kernel says; it begins anew when the socket is disconnected, which only
	// connect(2) to AF_UNSPEC does. carried is what was moved before.
	sent, received uint64
	carried        amounts
}

// share is what a process has moved.
type share struct {
	Process
	holders []*holder
	owners  int     // most that have had it open at one time
	from    amounts // that the socket had moved before
}

func newAccount(s sockets.Socket, now time.Time) *account {
	a := &account{transport: transportOf(0, uint16(s.Protocol)), opened: now, changed: true}
	a.socket, a.shares = s, a.first[:]
	a.socket.Info = nil
	if s.Protocol == unix.IPPROTO_RAW {
		a.transport = transportOf(unix.SOCK_RAW, s.Local.Port())
	}
	return a
}

// begin forgets what was moved up to now.
func (a *account) begin(from amounts) {
	for i := range a.shares {
		a.shares[i].from = from
	}
	a.changed = true
}

// take takes over what the kernel says now, in a survey.
func (a *account) take(s sockets.Socket, survey uint32) {
	before, raw := a.socket, s.Info
	s.Info = nil
	a.socket, a.seen = s, survey
	a.asked = a.asked && (s.Inode == before.Inode || s.Inode == 0) // a connection has its inode when it is accepted
	moved := s.Local != before.Local || s.Remote != before.Remote
	a.changed = a.changed || moved || s.Cgroup != before.Cgroup || s.NetNS != before.NetNS
	if s.Protocol != unix.IPPROTO_TCP || raw == nil {
		return
	}
	info := readInfo(raw)
	if info.Bytes_sent < a.sent || info.Bytes_received < a.received || moved {
		a.carried = a.moved
	}
	a.sent, a.received = info.Bytes_sent, info.Bytes_received
	now := carries(s, info)
	a.moved.transmit = max(a.moved.transmit, a.carried.transmit+now.transmit)
	a.moved.receive = max(a.moved.receive, a.carried.receive+now.receive)
	if !a.sided {
		a.inward, a.sided = isInward(s, info)
		a.changed = a.changed || a.sided
	}
	if a.tcp == nil {
		a.tcp, a.changed = newMeasured(), true
	}
	t := a.tcp
	if (amounts{*t.Transmitted, *t.Received}) != a.moved {
		*t.Transmitted, *t.Received = a.moved.transmit, a.moved.receive
		a.changed = true
	}
	if t.State == "" || s.State != before.State {
		t.State = StateName(s.State)
	}
	t.Retransmits = info.Total_retrans
	t.measure(info.Rtt, info.Min_rtt)
}

// readInfo reads tcp_info, of which older kernels have less.
func readInfo(b []byte) (info unix.TCPInfo) {
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&info)), unsafe.Sizeof(info)), b)
	return info
}

// carries is what the application has moved through a connection. tcp_get_info() reads
// all of tcp_info under the socket's lock, so it fits together.
//
// Transmitted is what was sent without what was sent again, and what waits behind it:
// bytes_sent counts the data of segments in __tcp_transmit_skb(), with that of a fast
// open's SYN and without SYN and FIN, bytes_retrans in __tcp_retransmit_skb().
// notsent_bytes is write_seq - snd_nxt. Once tcp_send_fin() has queued the FIN it is the
// last one in write_seq, so it is in what waits as long as anything does. A SYN isn't:
// in SYN_SENT both are equal, unless a deferred fast open hasn't set snd_nxt yet.
//
// Received is copied_seq without the FIN: bytes_received is how far rcv_nxt has moved
// (tcp_rcv_nxt_update()), with the peer's FIN, and the read queue of sock_diag is
// rcv_nxt - copied_seq, with the FIN until the end is read (tcp_recvmsg_locked() goes
// past it then). So the FIN has to be taken off where it has come and nothing is unread.
// The read queue is read without the lock, a moment before the rest: what comes in
// between seems to have been read already, as it will be.
func carries(s sockets.Socket, info unix.TCPInfo) amounts {
	waits, received := uint64(info.Notsent_bytes), info.Bytes_received-min(uint64(s.ReadQueue), info.Bytes_received)
	switch info.State {
	case sockets.SynSent:
		waits = 0
	case sockets.FinWait1, sockets.Closing, sockets.LastAck:
		waits -= min(waits, 1)
	}
	switch info.State {
	case sockets.CloseWait, sockets.LastAck, sockets.Closing:
		if s.ReadQueue == 0 {
			received -= min(received, 1)
		}
	}
	return amounts{info.Bytes_sent - info.Bytes_retrans + waits, received}
}

// isInward says whether the peer opened a connection, if it is known: who opened it has
// a SYN that was acknowledged, or waits for it. bytes_acked is how far snd_una has moved
// (tcp_snd_una_update()), and the write queue of sock_diag write_seq - snd_una, so
// together they are the data, the FIN and, on the side that opened, the SYN: the other
// side begins behind its own (tcp_create_openreq_child()). The write queue is read
// without the socket's lock.
func isInward(s sockets.Socket, info unix.TCPInfo) (inward, known bool) {
	fin := uint64(0)
	switch info.State {
	case sockets.SynSent:
		return false, true
	case sockets.FinWait1, sockets.FinWait2, sockets.Closing, sockets.LastAck:
		fin = 1
	}
	syn := info.Bytes_acked + uint64(s.WriteQueue) - fin - carries(s, info).transmit
	return syn == 0, syn <= 1
}

// own says who has the socket open now: of several the one with the lowest pid, or one
// that is asked for. Who had it before keeps what it has moved.
func (a *account) own(holders []*holder, asked []uint32) {
	last := &a.shares[len(a.shares)-1]
	i := slices.IndexFunc(holders, func(h *holder) bool { return h.PID == last.PID && h.Start == last.Start })
	if i < 0 {
		i = max(0, slices.IndexFunc(holders, func(h *holder) bool { return slices.Contains(asked, h.PID) }))
		if last.from != a.moved && (last.PID != 0 || a.asked) {
			a.shares = append(a.shares, share{from: a.moved})
			last = &a.shares[len(a.shares)-1]
		}
		last.owners = 0
	}
	last.Process, last.holders, last.owners = holders[i].Process, holders, max(last.owners, len(holders))
	a.changed = true
}

// isOf says whether a process has the socket open, or had it.
func (a *account) isOf(pid uint32) bool {
	for _, s := range a.shares {
		for _, h := range s.holders {
			if h.PID == pid {
				return true
			}
		}
	}
	return false
}

// rows adds the rows of the socket.
func (a *account) rows(to []Row, closed *time.Time) []Row {
	a.changed = false
	for i := range a.shares {
		s, m := &a.shares[i], a.until(i).minus(a.shares[i].from)
		to = append(to, Row{
			Cookie: a.socket.Cookie, NetNS: a.socket.NetNS, Transport: a.transport, Family: unix.AF_INET6, Local: end(a.socket, a.socket.Local),
			Process: s.Process, Owners: s.owners, Counters: Counters{TransmitBytes: m.transmit, ReceiveBytes: m.receive},
			TCP: a.tcp, Opened: a.opened, Closed: closed, Inward: a.inward, Status: s.status(a, closed),
		})
		r := &to[len(to)-1]
		r.Cgroup = a.socket.Cgroup
		if a.socket.Local.Addr().Is4() {
			r.Family = unix.AF_INET
		}
		if !a.socket.Remote.Addr().IsUnspecified() {
			r.Peer = end(a.socket, a.socket.Remote)
		}
	}
	return to
}

// has says whether the row of an open socket is the right one already.
func (a *account) has(r *Row) bool {
	return !a.changed && len(a.shares) == 1 && r.Cookie == a.socket.Cookie && r.Closed == nil
}

// until is what had been moved when a share ended.
func (a *account) until(i int) amounts {
	if i+1 < len(a.shares) {
		return a.shares[i+1].from
	}
	return a.moved
}

func (s share) status(a *account, closed *time.Time) Status {
	switch {
	case closed != nil || a.tcp == nil:
		return Polled
	case s.owners > 1:
		return Sum
	}
	return Exact
}

// nobodys is what was moved by nobody that is known.
func (a *account) nobodys() (bytes uint64) {
	for i, s := range a.shares {
		if s.PID == 0 {
			m := a.until(i).minus(s.from)
			bytes += m.transmit + m.receive
		}
	}
	return bytes
}
