package flow

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"bpfnet/internal/fault"
	"bpfnet/internal/netns"
)

const (
	mostQuestions = 2000            // flows of which one sample asks
	mostAttempts  = 3               // samples that ask for a flow of which nothing is known
	remembered    = 2 * time.Minute // after its end a connection is tracked no longer
)

// tracked is how many connections are tracked in the network namespace of the reader.
// It isn't there until somebody has the kernel track any: asking would load ctnetlink.
const tracked = "/proc/sys/net/netfilter/nf_conntrack_count"

// translated is a Sampler that says of the rows of another whom the peers' addresses were
// translated to.
type translated struct {
	Sampler
	kernel Kernel
	here   uint64 // inode of the kernel's network namespace
	known  map[ID]*translation
	order  []*translation // of the rows of the sample before: most are where they were
	sample uint32
}

// translation is what is known of a flow.
type translation struct {
	to       netip.AddrPort
	cookie   uint64 // of a TCP connection; 0: it is none
	opened   int64  // ns, as in IDs
	seen     uint32 // sample that had the flow
	attempts uint8
}

// isOf says whether it surely is that of a row.
func (t *translation) isOf(r *Row) bool {
	return t != nil && t.cookie == r.Cookie && r.TCP != nil && t.opened == r.openedAt()
}

// translate has the rows of a sampler tell of NAT. The strings are for people.
func translate(s Sampler, kernel Kernel) (Sampler, []string) {
	t, notes := newTranslated(kernel)
	if t == nil {
		return s, notes
	}
	t.Sampler = s
	return t, nil
}

// newTranslated returns nil where this user may not ask.
func newTranslated(kernel Kernel) (*translated, []string) {
	t := &translated{kernel: kernel, known: map[ID]*translation{}}
	err := kernel.InNetNS(func() (err error) {
		if t.here, err = netns.Inode(""); err != nil || !tracks() {
			return err
		}
		return mayAsk()
	})
	if err != nil {
		return nil, []string{fmt.Sprintf("peers behind NAT have one address: %v", err)}
	}
	return t, nil
}

// Sample implements Sampler.
func (t *translated) Sample(ctx context.Context) (Sample, error) {
	s, err := t.Sampler.Sample(ctx)
	if err != nil {
		return s, err
	}
	if _, err := os.Stat(tracked); errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	asked := t.unknown(&s)
	t.ask(asked, s.Rows)
	settle(asked)
	return s, nil
}

// settle keeps the answers.
func settle(asked []*question) {
	for _, q := range asked {
		if q.answered {
			q.about.attempts = mostAttempts
		}
		q.about.to = q.translation()
		q.row.NAT = q.about.to
	}
}

// question is whom packets between two addresses go to.
type question struct {
	row      *Row
	about    *translation
	tuple         // as the packets have it where they have come to
	answered bool // by the last that was asked
}

// unknown fills in what is known, forgets flows that the sample doesn't have, and returns
// the questions to ask: those of closed flows first, which don't come again.
func (t *translated) unknown(s *Sample) (questions []*question) {
	if t.sample++; t.sample == 1 {
		t.known, t.order = make(map[ID]*translation, len(s.Rows)), make([]*translation, 0, len(s.Rows))
	}
	seen := 0
	for _, open := range []bool{false, true} {
		for i := range s.Rows {
			r := &s.Rows[i]
			if !r.Peer.IsValid() || (r.Closed == nil) != open || !open && s.Time.Sub(*r.Closed) > remembered {
				continue
			}
			about := t.about(r, i)
			r.NAT, seen = about.to, seen+1
			if about.attempts < mostAttempts && len(questions) < mostQuestions {
				about.attempts++
				asked, _ := r.tuple()
				questions = append(questions, &question{row: r, about: about, tuple: asked})
			}
		}
	}
	if seen < len(t.known) {
		maps.DeleteFunc(t.known, func(_ ID, about *translation) bool { return about.seen != t.sample })
	}
	return questions
}

// about is what is known of the flow of the n-th row.
func (t *translated) about(r *Row, n int) *translation {
	for len(t.order) <= n {
		t.order = append(t.order, nil)
	}
	about := t.order[n]
	if !about.isOf(r) || about.seen+1 < t.sample { // it may have been forgotten
		about = t.find(r)
		t.order[n] = about
	}
	about.seen = t.sample
	return about
}

func (t *translated) find(r *Row) *translation {
	id := r.ID()
	about := t.known[id]
	if about == nil {
		about = &translation{}
		if r.TCP != nil {
			about.cookie, about.opened = r.Cookie, id.Opened
		}
		if _, ok := r.tuple(); !ok {
			about.attempts = mostAttempts
		}
		t.known[id] = about
	}
	return about
}

// ask asks where the sockets are, and then where the packets come by.
func (t *translated) ask(questions []*question, rows []Row) {
	inside := map[uint64][]*question{}
	for _, q := range questions {
		inside[q.row.NetNS] = append(inside[q.row.NetNS], q)
	}
	var passing []*question
	pids := map[uint64][]int{}
	for i := range rows {
		r := &rows[i]
		if inside[r.NetNS] == nil || r.PID == 0 {
			continue
		}
		if those := pids[r.NetNS]; len(those) == 0 || those[len(those)-1] != int(r.PID) {
			pids[r.NetNS] = append(those, int(r.PID))
		}
	}
	for inode, those := range inside {
		if inode != t.here {
			slices.Sort(pids[inode])
			_ = enter(inode, slices.Compact(pids[inode]), func() error { return answer(those) }) // it may be gone
		}
		for _, q := range those {
			if inode == t.here || q.leaves() {
				q.answered = false
				passing = append(passing, q)
			}
		}
	}
	_ = t.kernel.InNetNS(func() error { return answer(passing) })
}

// leaves says whether packets may come to other namespaces with these addresses.
func (q *question) leaves() bool {
	local := func(a netip.Addr) bool { return a.IsUnspecified() || a.IsLoopback() || a.IsLinkLocalUnicast() }
	return !local(q.from.Addr()) && !local(q.to.Addr())
}

// translation is the peer's other address; invalid: it has none.
func (q *question) translation() netip.AddrPort {
	to := q.to
	if q.isICMP() {
		to = netip.AddrPortFrom(to.Addr(), q.row.Peer.Port())
	}
	if to == q.row.Peer {
		return netip.AddrPort{}
	}
	return to
}

// answer looks up where packets go, in the network namespace that the thread is in.
func answer(questions []*question) error {
	for _, q := range questions {
		q.locate()
	}
	if len(questions) == 0 || !tracks() {
		return nil
	}
	c, err := openConntrack()
	if err != nil {
		return err
	}
	defer c.close()
	for _, q := range questions {
		if q.from.Addr().IsUnspecified() {
			continue
		}
		back, err := c.reverse(q.tuple)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return err
		}
		q.from, q.to, q.answered = back.to, back.from, true
	}
	return nil
}

// locate finds the address that a socket sends from that isn't bound to one.
func (q *question) locate() {
	if !q.from.Addr().IsUnspecified() {
		return
	}
	routes, err := netlink.RouteGet(q.to.Addr().AsSlice())
	if err != nil || len(routes) == 0 {
		return
	}
	if from, ok := netip.AddrFromSlice(routes[0].Src); ok {
		q.from = netip.AddrPortFrom(from.Unmap(), q.from.Port())
	}
}

// tracks says whether there are tracked connections in the network namespace that the
// thread is in.
func tracks() bool {
	count, err := os.ReadFile(tracked)
	return err == nil && strings.TrimSpace(string(count)) != "0"
}

// mayAsk is nil if this user may, or the kernel has nobody to ask.
func mayAsk() error {
	c, err := openConntrack()
	if err != nil {
		return nil
	}
	defer c.close()
	nobody := netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
	_, err = c.reverse(tuple{unix.IPPROTO_TCP, nobody, nobody})
	if errors.Is(err, unix.EPERM) {
		return fault.New(fault.ErrPermission, "ask for tracked connections: %w", err)
	}
	return nil
}
