package commands

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/urfave/cli/v2"

	"bpfnet/internal/dns"
)

// peerNames learns the names of peers, from answers that dns sees, while flows are
// watched.
type peerNames struct {
	*dns.Names
	source  AnswerSource
	note    func(string)
	stop    func()
	working sync.WaitGroup
	ended   chan error    // of reading
	over    bool          // nothing is read any more
	lost    uint64        // how many a note has told of
	sampled time.Duration // since boot
}

// Bounds of what is learned: so many pairs of who asked and an address, for so long after
// their answer has expired, as connections last longer, and programs don't ask each time.
const (
	mostPeerNames = 1 << 16
	peerNameGrace = 10 * time.Minute
)

// learnNames starts to learn; close ends it.
func (e *Env) learnNames(c *cli.Context, b Backend) (*peerNames, error) {
	attachments, err := b.Attachments(c.Context, dnsProgram)
	if err != nil {
		return nil, notLoadedDNS(err)
	}
	n := &peerNames{Names: dns.NewNames(mostPeerNames, peerNameGrace), ended: make(chan error, 1)}
	n.note = func(text string) { e.note(c, "note: %s", text) }
	if len(attachments) == 0 {
		n.note("no names are seen: " + unseen(dnsProgram))
	}
	if n.source, err = b.Answers(c.Context, dnsProgram, c.Duration("lock-timeout"), c.Bool("steal")); err != nil {
		return nil, err
	}
	e.notes(c, n.source.Notes())
	ctx, stop := context.WithCancel(c.Context)
	n.stop = stop
	n.working.Go(func() {
		n.ended <- n.source.Read(ctx, func(answers []dns.Answer) error {
			for _, a := range answers {
				n.Learn(a)
			}
			return nil
		})
	})
	return n, nil
}

// of is the name by which a local address knew a peer's, so long before the sample.
func (n *peerNames) of(local, peer netip.Addr, ago time.Duration) string {
	return n.Of(local, peer, n.sampled-ago)
}

// drainLongest is how long answers that have come are waited for.
const drainLongest = 200 * time.Millisecond

// catchUp is called when a sample was taken. It waits until the answers that have come are
// learned, and says what there won't be names of.
func (n *peerNames) catchUp() {
	n.sampled = sinceBoot()
	for begin := time.Now(); !n.over && !n.source.Drained() && time.Since(begin) < drainLongest; {
		time.Sleep(time.Millisecond)
	}
	n.tell()
}

// tell says what there won't be names of.
func (n *peerNames) tell() {
	select {
	case err := <-n.ended:
		n.over = true
		if err != nil {
			n.note(fmt.Sprintf("no more names are learned: %v", err))
		}
	default:
	}
	if lost, err := n.source.Lost(); err == nil && lost != n.lost {
		n.lost = lost
		n.note(fmt.Sprintf("answers that %s lost so far, because they weren't read fast enough: %d", dnsProgram, lost))
	}
}

// close may be called of nil.
func (n *peerNames) close() {
	if n == nil {
		return
	}
	n.stop()
	n.working.Wait()
	_ = n.source.Close() // it was only read
}
