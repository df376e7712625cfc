package detect

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"bpfnet/internal/fault"
	"bpfnet/internal/peers"
)

// Scan is the rule that fires when an endpoint tries many ports of a peer, or fails
// often to connect.
type Scan struct {
	Sign   Sign
	Amount uint64 // the threshold
	Timing
}

// Sign is what a scan is known by.
type Sign string

// The signs.
const (
	Ports  Sign = "ports"  // different ones of one peer
	Failed Sign = "failed" // attempts that were refused, or not answered within Grace
)

// The largest thresholds.
const (
	largestPorts  = 1024
	largestFailed = 1 << 24
)

// scanForm is what people are told.
const scanForm = "a scan is Nports/TIME or Nfailed/TIME[,for=TIME], as in 100ports/60s or 50failed/60s"

// ParseScan reads "100ports/60s" and "50failed/60s", with options behind commas:
// "for=2m". Errors are of kind fault.ErrUsage.
func ParseScan(text string) (Scan, error) {
	s, err := parseScan(text)
	if err != nil {
		return Scan{}, fault.New(fault.ErrUsage, "read scan %q: %w", text, err).Hint("%s", scanForm)
	}
	return s, nil
}

func parseScan(text string) (s Scan, err error) {
	s.Timing, err = parseRule(text, longestWindow, func(amount string) (err error) {
		digits := strings.TrimRight(amount, "abcdefghijklmnopqrstuvwxyz")
		largest := uint64(largestPorts)
		switch s.Sign = Sign(amount[len(digits):]); s.Sign {
		case Ports:
		case Failed:
			largest = largestFailed
		default:
			return fmt.Errorf("%q is a number neither of %s nor of %s", amount, Ports, Failed)
		}
		s.Amount, err = parseCount(digits, largest)
		return err
	}, func(string, string, bool) (known, twice bool, err error) { return false, false, nil })
	return s, err
}

// String writes the rule so that ParseScan reads it, and the same one always the same.
func (s Scan) String() string {
	return strconv.FormatUint(s.Amount, 10) + string(s.Sign) + "/" + seconds(s.Window) + s.lasting()
}

// ScanFinding is a scan, or that it is over.
type ScanFinding struct {
	Episode
	Rule  Scan
	Ports []PeerPort // some of those that counted when it began
}

// PeerPort is a port of a peer.
type PeerPort struct {
	Address netip.Addr
	Port    uint16 // 0: the transport has none
}

// scan is what a rule knows of an endpoint.
type scan struct {
	ports  *ports     // nil: the rule isn't about these
	failed window     // attempts
	last   []PeerPort // of attempts that failed, the last ones first
	sample []PeerPort // of the episode
}

// Scans applies rules of scans to samples, one after the other.
type Scans struct {
	book[scan]
	rules    []Scan
	attempts *attempts // nil: no rule is about failed ones
	forgot   uint64
}

// NewScans returns Scans that have seen no sample.
func NewScans(rules []Scan) *Scans {
	s := &Scans{rules: rules}
	s.book = newBook(rules, s.newScan)
	for _, r := range rules {
		if r.Sign == Failed {
			s.attempts = newAttempts()
			s.keep = max(s.keep, milliseconds(r.Window+2*Grace))
			s.needs = max(s.needs, milliseconds(r.Window+r.Lasting+Grace))
		}
	}
	return s
}

func (s *Scans) newScan(rule int) (fresh scan) {
	if s.rules[rule].Sign == Ports {
		fresh.ports = &ports{pruned: s.before}
	}
	return fresh
}

// Step takes the next sample and returns what the rules find, by rule and endpoint.
func (s *Scans) Step(doc peers.Document) []ScanFinding {
	takePeers(&s.book, &doc, s.contact)
	if s.attempts != nil {
		s.attempts.step(s.now, s.known, s.fail)
	}
	found := judge(&s.book, s.apply)
	s.forget()
	return found
}

func (s *Scans) contact(e *endpoint[scan], at place, row *peers.Peer, when clock) {
	to := PeerPort{row.Peer.Address.Unmap(), 0}
	if row.Peer.Port != nil {
		to.Port = *row.Peer.Port
	}
	if *row.NewAttempts > 0 {
		e.act(&row.Who, *row.NewAttempts, s.now)
	}
	if *row.NewAttempts > 0 && row.Peer.Port != nil {
		for i, r := range s.rules {
			if r.Sign == Ports {
				s.forgot += e.states[i].ports.add(to, when, s.now, milliseconds(r.Window))
			}
		}
	}
	if s.attempts != nil {
		if n := s.attempts.of(attemptsKey{at, row.Transport, to}, row, s.now); n > 0 {
			s.fail(at, to, n)
		}
	}
}

// fail adds attempts that failed to what rules know of the endpoint.
func (s *Scans) fail(at place, to PeerPort, n uint64) {
	owner := s.entries[at].owner // remembered for longer than attempts wait
	for i, r := range s.rules {
		if r.Sign == Failed {
			state := &owner.states[i]
			state.failed.add(s.before, s.now, n, milliseconds(r.Window)/buckets)
			state.remember(to)
		}
	}
}

// remember puts a peer's port in front of the others.
func (s *scan) remember(to PeerPort) {
	kept := []PeerPort{to}
	for _, p := range s.last {
		if p != to && len(kept) < sampled {
			kept = append(kept, p)
		}
	}
	s.last = kept
}

// apply applies a rule to an endpoint.
func (s *Scans) apply(rule int, e *endpoint[scan]) (found ScanFinding, ok bool) {
	r, state := s.rules[rule], &e.states[rule]
	on, atLeast := e.alarms[rule].episode, r.Amount
	if on != nil {
		atLeast = 0
	}
	amount, peer := uint64(0), netip.Addr{}
	if r.Sign == Ports {
		amount, peer = state.ports.most(atLeast, s.now, milliseconds(r.Window))
	} else {
		amount = state.failed.sum(s.now, milliseconds(r.Window)/buckets)
	}
	found.Rule = r
	if on != nil {
		found.Episode, ok = s.end(rule, e, amount, on.EndsBelow())
	} else if found.Episode, ok = s.raise(rule, e, amount, r.Amount); ok {
		state.sample = state.last
		if r.Sign == Ports {
			state.sample = state.ports.some(peer, sampled)
		}
	}
	found.Ports = state.sample
	return found, ok
}

// Forgot is how many ports and attempts, that are more than an endpoint or all of them
// may have in memory, no rule has counted.
func (s *Scans) Forgot() uint64 {
	if s.attempts == nil {
		return s.forgot
	}
	return s.forgot + s.attempts.forgot
}
