package flow

import (
	"net/netip"
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
	socket sockets.Socket
	row    Row     // what all its rows have
	moved  amounts // since it was made
	shares []share // of processes that had it one after the other; the last one has it now
	there  bool    // in the last survey
	asked  bool    // whose it is was looked for
	sided  bool    // it is known who opened the connection

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
	row := Row{Cookie: s.Cookie, NetNS: s.NetNS, Transport: transportOf(0, uint16(s.Protocol)), Opened: now}
	if s.Protocol == unix.IPPROTO_RAW {
		row.Transport = transportOf(unix.SOCK_RAW, s.Local.Port())
	}
	return &account{row: row, shares: make([]share, 1), socket: s}
}

// begin forgets what was moved up to now.
func (a *account) begin(from amounts) {
	for i := range a.shares {
		a.shares[i].from = from
	}
}

// take takes over what the kernel says now.
func (a *account) take(s sockets.Socket) {
	before := a.socket
	a.socket, a.there = s, true
	a.socket.Info = nil
	a.asked = a.asked && (s.Inode == before.Inode || s.Inode == 0) // a connection has its inode when it is accepted
	r := &a.row
	r.Family, r.Local, r.Peer = unix.AF_INET6, end(s, s.Local), netip.AddrPort{}
	if s.Local.Addr().Is4() {
		r.Family = unix.AF_INET
	}
	if !s.Remote.Addr().IsUnspecified() {
		r.Peer = end(s, s.Remote)
	}
	if s.Protocol != unix.IPPROTO_TCP || s.Info == nil {
		return
	}
	info := readInfo(s.Info)
	if info.Bytes_sent < a.sent || info.Bytes_received < a.received || s.Local != before.Local || s.Remote != before.Remote {
		a.carried = a.moved
	}
	a.sent, a.received = info.Bytes_sent, info.Bytes_received
	now := carries(s, info)
	a.moved.transmit = max(a.moved.transmit, a.carried.transmit+now.transmit)
	a.moved.receive = max(a.moved.receive, a.carried.receive+now.receive)
	if !a.sided {
		r.Inward, a.sided = isInward(s, info)
	}
	var t struct { // allocated at once
		TCP
		amounts
	}
	t.amounts = a.moved
	t.TCP = TCP{
		State: StateName(s.State), SRTT: info.Rtt, MinRTT: info.Min_rtt, Retransmits: info.Total_retrans,
		Transmitted: &t.transmit, Received: &t.receive,
	}
	if info.Min_rtt == unmeasured {
		t.MinRTT = 0
	}
	r.TCP = &t.TCP
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
	for i, s := range a.shares {
		r := a.row
		r.Process, r.Cgroup, r.Owners, r.Closed, r.Status = s.Process, a.socket.Cgroup, s.owners, closed, s.status(a, closed)
		m := a.until(i).minus(s.from)
		r.TransmitBytes, r.ReceiveBytes = m.transmit, m.receive
		to = append(to, r)
	}
	return to
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
	case closed != nil || a.row.TCP == nil:
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
