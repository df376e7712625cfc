package flow

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"bpfnet/bpf"
	"bpfnet/internal/datapath"
	"bpfnet/internal/fault"
	"bpfnet/internal/maps"
)

// Program is the built-in program that counts flows.
const Program = "flows"

// Reader is the Sampler of the program flows, loaded or started.
type Reader struct {
	objects datapath.Objects
	backend Backend
	since   time.Time
	boot    time.Time // when CLOCK_BOOTTIME was 0; the same for all samples, so that the times of a row are, too
	closed  ring
	first   bool
	loss    Loss
	rests   map[use]Counters // what uses of open sockets had without a known peer, at most so far
	raw     []byte           // what flows_dump wrote
	command string           // of the last row

	walk    walk
	open    table // sockets that are open
	talking table // those with several peers: a row of a sample is what was moved with one of them
}

func newReader(objects datapath.Objects) (*Reader, error) {
	r := &Reader{
		objects: objects, backend: backendOf(objects.Programs()), first: true, rests: map[use]Counters{}, raw: make([]byte, dumpSize),
		open: table{index: map[place]int32{}}, talking: table{index: map[place]int32{}},
	}
	var up unix.Timespec
	err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &up)
	r.boot = time.Now().Add(-time.Duration(up.Nano()))
	if err == nil {
		r.closed, err = r.ring("closed_flows", func(sums bpf.FlowSums) uint64 { return sums.Closed })
	}
	if err != nil {
		return nil, fault.Join(err, objects.Close())
	}
	return r, nil
}

// backendOf tells the mechanism by the programs that are loaded.
func backendOf(programs []string) Backend {
	b := Backend{TCPTransmit: "tp_btf/sock_send_length", TCPReceive: "tp_btf/tcp_rcv_space_adjust", Datagrams: "tp_btf/sock_recv_length", Store: "sk_storage"}
	switch mechanismOf(programs) {
	case "fexit":
		b.TCPTransmit, b.Datagrams = "fexit/inet_sendmsg", "fexit/inet_recvmsg"
	case "kprobe":
		b.TCPTransmit, b.Datagrams, b.Store = "kprobe/inet_sendmsg", "kprobe/inet_recvmsg", "hash"
	}
	return b
}

// Close implements Sampler.
func (r *Reader) Close() error { return r.objects.Close() }

// Sample implements Sampler. Sockets that are open are read first: one that is closed
// meanwhile is among those that were closed, too, and counts as that.
func (r *Reader) Sample(ctx context.Context) (Sample, error) {
	if err := r.dump(); err != nil {
		return Sample{}, err
	}
	if err := ctx.Err(); err != nil {
		return Sample{}, err
	}
	sums, err := r.sums()
	if err != nil {
		return Sample{}, err
	}
	closed, lost, err := r.closed.since(sums.Closed)
	if err != nil {
		return Sample{}, err
	}
	if lost > 0 && !r.first {
		r.walk.again()
	}
	if r.first {
		r.first, r.since = false, r.time(sums.Began)
	}
	r.loss.Events += lost
	if r.loss.Missed, err = r.missed(sums); err != nil {
		return Sample{}, err
	}
	r.loss.MapFull = sums.NoRoom
	r.loss.Unattributed = sums.NoRoomBytes
	peers, err := r.peers(ctx)
	if err != nil {
		return Sample{}, err
	}
	return Sample{Time: time.Now(), Since: r.since, Backend: r.backend, Rows: r.rows(closed, peers), Loss: r.loss}, nil
}

// missed is how often programs weren't run that have no twin, which sees it then, and what
// programs themselves have noticed of that.
func (r *Reader) missed(sums bpf.FlowSums) (total uint64, err error) {
	total = sums.Missed
	const twin = "_again"
	programs := r.objects.Programs()
	for _, name := range programs {
		if strings.HasSuffix(name, twin) || slices.Contains(programs, name+twin) {
			continue
		}
		n, err := r.objects.Missed(name)
		if err != nil {
			return 0, err
		}
		total += n
	}
	return total, nil
}

// rows are those of open sockets as they are in the table, and behind them those that are
// made for one sample.
func (r *Reader) rows(closed []bpf.FlowRecord, peers map[use][]peer) []Row {
	for i := range closed {
		r.open.close(closed[i].Cookie, closed[i].Opened)
		r.talking.close(closed[i].Cookie, closed[i].Opened)
	}
	for whose := range peers {
		r.open.move(whose.cookie, &r.talking)
	}
	rows := r.open.rows
	for i := range r.talking.rows {
		row := &r.talking.rows[i]
		rows = r.append(rows, row, use{row.Cookie, r.talking.about[i].opened, processKey(row.PID, row.Start), r.talking.about[i].first}, peers)
	}
	for i := range closed {
		row := r.closedRow(&closed[i])
		rows = r.append(rows, &row, useOf(&closed[i]), peers)
	}
	r.open.rows = rows[:len(r.open.rows)] // with room for as many the next time
	return rows
}

// processKey is what the program has for a process (process_key).
func processKey(pid uint32, start uint64) uint64 { return uint64(pid)<<42 | start>>20&(1<<42-1) }

// use tells the counters of a process in a socket from others.
type use struct {
	cookie, opened, process uint64
	first                   bool // those of the first peer, which have a record of their own
}

func useOf(from *bpf.FlowRecord) use {
	return use{from.Cookie, from.Opened, from.Use.Key, from.First != 0}
}

// peer is what was moved with one of the peers of a use.
type peer struct {
	at       netip.AddrPort
	counters Counters
}

// peers reads with whom else sockets talk that aren't connected.
func (r *Reader) peers(ctx context.Context) (map[use][]peer, error) {
	m, err := r.objects.Map("flow_peers")
	if err != nil {
		return nil, err
	}
	all := map[use][]peer{}
	err = maps.Walk(ctx, m, func(rawKey, rawValue []byte) error {
		key, value := (*bpf.FlowPeerKey)(unsafe.Pointer(&rawKey[0])), (*bpf.FlowPeer)(unsafe.Pointer(&rawValue[0]))
		whose := use{cookie: key.Cookie, opened: key.Opened, process: key.Process}
		all[whose] = append(all[whose], peer{
			at: endpointOf(key.Peer.In6U.U6Addr8, port(key.Port)),
			counters: Counters{
				TransmitBytes: value.TransmitBytes, ReceiveBytes: value.ReceiveBytes,
				TransmitCalls: value.TransmitCalls, ReceiveCalls: value.ReceiveCalls,
			},
		})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the peers of sockets: %w", err)
	}
	return all, nil
}

// append adds the rows of a use: one for each peer of a socket that isn't connected, and
// one for what is left.
func (r *Reader) append(rows []Row, from *Row, whose use, peers map[use][]peer) []Row {
	with := peers[whose]
	if len(with) == 0 {
		return append(rows, *from)
	}
	row, rest := *from, *from
	for _, p := range with {
		row.Peer, row.Counters = p.at, p.counters
		row.Family = familyOf(p.at.Addr(), row.Family)
		rest.subtract(p.counters)
		rows = append(rows, row)
	}
	rest.Counters = r.keepRest(whose, rest.Counters, row.Closed != nil)
	if rest.Counters != (Counters{}) {
		rows = append(rows, rest)
	}
	return rows
}

// keepRest returns the most that a use was known to have without a peer: peers are read
// later than uses, so that now it may seem to be less.
func (r *Reader) keepRest(whose use, now Counters, closed bool) Counters {
	before, known := r.rests[whose]
	now = Counters{
		TransmitBytes: max(now.TransmitBytes, before.TransmitBytes), ReceiveBytes: max(now.ReceiveBytes, before.ReceiveBytes),
		TransmitCalls: max(now.TransmitCalls, before.TransmitCalls), ReceiveCalls: max(now.ReceiveCalls, before.ReceiveCalls),
	}
	switch {
	case closed && known:
		delete(r.rests, whose)
	case !closed && now != before:
		r.rests[whose] = now
	}
	return now
}

// subtract takes off what a peer's entry has. That is read later, and may have more.
func (c *Counters) subtract(less Counters) {
	c.TransmitBytes -= min(c.TransmitBytes, less.TransmitBytes)
	c.ReceiveBytes -= min(c.ReceiveBytes, less.ReceiveBytes)
	c.TransmitCalls -= min(c.TransmitCalls, less.TransmitCalls)
	c.ReceiveCalls -= min(c.ReceiveCalls, less.ReceiveCalls)
}

// familyOf is AF_INET for mapped addresses, whatever the socket's.
func familyOf(address netip.Addr, socket int) int {
	switch {
	case address.Is4():
		return unix.AF_INET
	case address.IsValid() && !address.IsUnspecified():
		return unix.AF_INET6
	}
	return socket
}

const (
	recordSize = int(unsafe.Sizeof(bpf.FlowRecord{}))
	dumpSize   = 32 << 10 // of what the kernel gives to a read
)

// dump reads the sockets that are open, of which the kernel tells those that have changed.
func (r *Reader) dump() error {
	sums, err := r.sums()
	if err != nil {
		return err
	}
	done, err := r.walk.begin(r.objects, sums.Walks+1)
	if err != nil {
		return err
	}
	defer done()
	reader, err := r.objects.Iterate("flows_dump", "flow_sockets")
	if err != nil {
		return err
	}
	defer reader.Close()
	for rest := 0; err == nil; {
		var n int
		n, err = reader.Read(r.raw[rest:])
		left := r.takeAll(r.raw[:rest+n])
		rest = copy(r.raw, left)
	}
	if !errors.Is(err, io.EOF) {
		return fmt.Errorf("read the counters of sockets: %w", err)
	}
	r.open.finish()
	r.talking.finish()
	if since, ok := r.walk.end(); ok {
		r.open.expire(since)
		r.talking.expire(since)
	}
	return nil
}

// takeAll takes over what is told one after the other, and returns what is cut off.
func (r *Reader) takeAll(raw []byte) []byte {
	const changeSize = int(unsafe.Sizeof(bpf.FlowChange{}))
	for len(raw) >= changeSize {
		size := changeSize
		if change := (*bpf.FlowChange)(unsafe.Pointer(&raw[0])); change.Cookie != 0 {
			r.change(change)
		} else if size = recordSize; len(raw) < size {
			break
		} else {
			r.take((*bpf.FlowRecord)(unsafe.Pointer(&raw[0])))
		}
		raw = raw[size:]
	}
	return raw
}

// tableOf is the one that has a socket, or is to have it.
func (r *Reader) tableOf(cookie uint64) *table {
	if _, talks := r.talking.index[place{cookie: cookie}]; talks {
		return &r.talking
	}
	return &r.open
}

// take takes over what is told of a socket.
func (r *Reader) take(from *bpf.FlowRecord) {
	r.fill(r.tableOf(from.Cookie).tell(from, r.walk.own), from)
}

// change takes over what is told of a socket that is known.
func (r *Reader) change(from *bpf.FlowChange) {
	row := r.tableOf(from.Cookie).known(place{from.Cookie, from.Number}, r.walk.own)
	if row == nil {
		r.walk.again()
		return
	}
	row.Counters = Counters{
		TransmitBytes: from.TransmitBytes, ReceiveBytes: from.ReceiveBytes,
		TransmitCalls: from.TransmitCalls, ReceiveCalls: from.ReceiveCalls,
	}
	if t := row.TCP; t != nil {
		if t.Transmitted != nil {
			*t.Transmitted, *t.Received = from.Transmitted, from.Received
		}
		t.Retransmits = from.Retransmits
		t.measure(from.SrttUs, from.MinRttUs)
	}
}

// ring opens a log, whose length the sums say.
func (r *Reader) ring(name string, length func(bpf.FlowSums) uint64) (ring, error) {
	m, err := r.objects.Map(name)
	return ring{m: m, head: func() (uint64, error) {
		sums, err := r.sums()
		return length(sums), err
	}}, err
}

func (r *Reader) sums() (sums bpf.FlowSums, err error) {
	m, err := r.objects.Map("flow_totals")
	if err == nil {
		err = m.Lookup(uint32(0), &sums)
	}
	return sums, err
}

func (r *Reader) time(ns uint64) time.Time { return r.boot.Add(time.Duration(ns)) }

// row makes a Row of a record.
func (r *Reader) row(from *bpf.FlowRecord) (row Row) {
	r.fill(&row, from)
	return row
}

// closedRow makes a Row of a record of a socket that was closed.
func (r *Reader) closedRow(from *bpf.FlowRecord) Row {
	row, ended := r.row(from), r.time(from.Time)
	row.Closed = &ended
	return row
}

// measured is what the kernel says of a connection, allocated at once.
type measured struct {
	TCP
	amounts
}

func newMeasured() *TCP {
	m := &measured{}
	m.Transmitted, m.Received = &m.transmit, &m.receive
	return &m.TCP
}

// fill makes a row that of a record. What it refers to is used again.
func (r *Reader) fill(row *Row, from *bpf.FlowRecord) {
	tcp := row.TCP
	*row = Row{
		Cookie: from.Cookie, NetNS: uint64(from.Netns), Transport: transportOf(from.Type, from.Protocol), Family: int(from.Family),
		Local: endpointOf(from.Local.In6U.U6Addr8, from.LocalPort), Owners: int(from.Owners),
		Process: Process{
			PID: from.Use.Pid, Start: from.Use.Start, Command: r.commandOf(from.Use.Command[:]),
			UID: from.Use.Uid, Cgroup: from.Use.CgroupId,
		},
		Counters: Counters{
			TransmitBytes: from.Use.TransmitBytes, ReceiveBytes: from.Use.ReceiveBytes,
			TransmitCalls: from.Use.TransmitCalls, ReceiveCalls: from.Use.ReceiveCalls,
		},
		Inward: from.Flags&bpf.FlowInward != 0, Status: Exact,
	}
	row.Family = familyOf(row.Local.Addr(), row.Family)
	if peer := endpointOf(from.Peer.In6U.U6Addr8, port(from.PeerPort)); peer.Port() != 0 || !peer.Addr().IsUnspecified() {
		row.Peer, row.Family = peer, familyOf(peer.Addr(), row.Family)
	}
	if from.Flags&bpf.FlowExisted == 0 {
		row.Opened = r.time(from.Opened)
	}
	if from.Flags&bpf.FlowRest != 0 {
		row.Status = Shared
	}
	if row.Transport != "tcp" {
		return
	}
	untold := from.Flags&bpf.FlowUntold != 0
	if row.TCP = tcp; tcp == nil || tcp.Transmitted == nil {
		row.TCP = newMeasured()
	}
	t := row.TCP
	t.State, t.Error, t.Retransmits = StateName(from.State), from.Error, from.Retransmits
	if *t.Transmitted, *t.Received = from.Transmitted, from.Received; untold {
		t.Transmitted, t.Received = nil, nil
	}
	t.measure(from.SrttUs, from.MinRttUs)
}

// measure sets round trip times, as the kernel has them.
func (t *TCP) measure(srtt, least uint32) {
	if t.SRTT, t.MinRTT = srtt, least; least == unmeasured {
		t.MinRTT = 0
	}
}

// noCookie is what the ids of sockets begin at that nobody has asked the kernel for a cookie of.
const noCookie = 1 << 63

// unmeasured is what the kernel has for a minimum of nothing.
const unmeasured = ^uint32(0)

func port(network uint16) uint16 {
	var raw [2]byte
	binary.NativeEndian.PutUint16(raw[:], network)
	return binary.BigEndian.Uint16(raw[:])
}

func endpointOf(address [16]byte, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16(address).Unmap(), port)
}

// commandOf is the text of a name. Many rows one after another have the same one.
func (r *Reader) commandOf(raw []int8) string {
	text := unsafe.Slice((*byte)(unsafe.Pointer(&raw[0])), len(raw))
	text, _, _ = bytes.Cut(text, []byte{0})
	if string(text) != r.command {
		r.command = string(text)
	}
	return r.command
}

// protocols are the names of IP's protocols.
var protocols = []struct {
	number int
	name   string
}{
	{unix.IPPROTO_TCP, "tcp"},
	{unix.IPPROTO_UDP, "udp"},
	{unix.IPPROTO_UDPLITE, "udplite"},
	{unix.IPPROTO_ICMP, "icmp"},
	{unix.IPPROTO_ICMPV6, "icmp"},
	{unix.IPPROTO_RAW, "raw"},
	{unix.IPPROTO_MPTCP, "mptcp"},
	{unix.IPPROTO_SCTP, "sctp"},
}

// transportOf is the name of what a socket speaks: ICMP whatever its type, else "raw" of
// raw sockets.
func transportOf(kind, protocol uint16) string {
	if kind == unix.SOCK_RAW && protocol != unix.IPPROTO_ICMP && protocol != unix.IPPROTO_ICMPV6 {
		return "raw"
	}
	for _, p := range protocols {
		if p.number == int(protocol) {
			return p.name
		}
	}
	return strconv.Itoa(int(protocol))
}

// TransportName is what a transport is called in rows, of which the user has the name, or
// the protocol's number.
func TransportName(word string) string {
	if number, err := strconv.ParseUint(word, 10, 16); err == nil {
		return transportOf(0, uint16(number))
	}
	return word
}

// protocolOf is the number of a name that has only one.
func protocolOf(name string) (number int, ok bool) {
	for _, p := range protocols {
		if p.name == strings.ToLower(name) {
			number, ok = p.number, !ok
		}
	}
	return number, ok
}
