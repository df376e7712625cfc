package blocklist

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"bpfnet/bpf"
	"bpfnet/internal/dns"
	"bpfnet/internal/fault"
)

// When a domain is asked for again.
const (
	shortestWait = 30 * time.Second // whatever its TTL
	longestWait  = 24 * time.Hour
	failedWait   = time.Minute // after no server had an answer
)

// lesson is what was found out about a domain of a list.
type lesson struct {
	list, domain string
	dns.Resolution
	err  error // no answer, or dns.ErrNoName
	seen bool  // on the wire: it may have other addresses, too
}

func (l lesson) hasAnswer() bool { return l.err == nil || errors.Is(l.err, dns.ErrNoName) }

func (l lesson) status() bpf.DomainStatus {
	switch {
	case !l.hasAnswer():
		return bpf.DomainFailed
	case l.err != nil || len(l.Addresses) == 0:
		return bpf.DomainNoName
	}
	return bpf.DomainResolved
}

// half is why the addresses of one family aren't known.
func (l lesson) half() error {
	switch {
	case l.Failed4 != nil:
		return fmt.Errorf("IPv4: %w", l.Failed4)
	case l.Failed6 != nil:
		return fmt.Errorf("IPv6: %w", l.Failed6)
	}
	return nil
}

// knows says whether an address that the domain had would be in the answer.
func (l lesson) knows(a netip.Addr) bool {
	return l.hasAnswer() && (a.Is4() && l.Failed4 == nil || a.Is6() && l.Failed6 == nil)
}

// due is when to ask again.
func (l lesson) due() time.Duration {
	if !l.hasAnswer() || l.half() != nil {
		return failedWait
	}
	return min(max(l.TTL, shortestWait), longestWait)
}

// learn puts the addresses of domains in force, and lets those go that their
// domains no longer have.
func (s *state) learn(ctx context.Context, lessons []lesson, change *Change) error {
	touched := map[string]bool{}
	for _, l := range lessons {
		if err := s.learnOne(ctx, l, change); err != nil {
			return err
		}
		touched[l.list] = true
	}
	for name := range touched {
		if err := s.reconcile(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// learnOne writes what a domain's answer has. A domain that was taken off its
// list meanwhile is none.
func (s *state) learnOne(ctx context.Context, l lesson, change *Change) error {
	d, found, err := s.lookupDomain(ctx, l.list, l.domain)
	if err != nil || !found {
		return err
	}
	known, err := s.readAnswers(ctx)
	if err != nil {
		return err
	}
	taken, refused, err := s.answersOf(ctx, d, l)
	if err != nil {
		return err
	}
	for _, r := range refused {
		change.refuse(r)
	}
	for _, one := range taken {
		if old, found := known.all[d.Number][one.address]; found && old == one {
			continue
		}
		if err := known.put(one); errors.Is(err, fault.ErrConflict) {
			change.refuse(Refusal{Where: l.domain + ": " + one.address.String(), Reason: err.Error()})
		} else if err != nil {
			return err
		}
	}
	if err := s.letGo(known, d, l, taken); err != nil {
		return err
	}
	d.Status, d.Checked, d.Due = l.status(), max(s.boot, 1), s.boot+uint32(l.due()/time.Second)
	return s.domains.put(d)
}

func (s *state) lookupDomain(ctx context.Context, list, name string) (domain, bool, error) {
	number, exists := s.find(list)
	if !exists {
		return domain{}, false, nil
	}
	known, err := s.readDomains(ctx)
	if err != nil {
		return domain{}, false, err
	}
	d, found := known.find(uint32(s.lists[number].Identity), name)
	return d, found, nil
}

// answersOf returns the addresses of an answer that are taken. Those that would
// lock people out are refused: who owns a domain chooses its addresses.
func (s *state) answersOf(ctx context.Context, d domain, l lesson) (taken []answer, refused []Refusal, err error) {
	if len(l.Addresses) == 0 {
		return nil, nil, nil
	}
	free := d.Forced != 0 || l.list == AllowList
	var g guard
	if !free {
		if g, err = s.ownGuard(); err != nil {
			return nil, nil, err
		}
	}
	note, err := s.noteOf(ctx, d, l)
	if err != nil {
		return nil, nil, err
	}
	for _, a := range l.Addresses {
		one := answer{identity: d.identity, domain: d.Number, address: a.Addr.Unmap().WithZone("")}
		one.Note, one.Source, one.Expires = note, bpf.AnswerResolved, d.Expires
		if why := g.refuses(one.prefix()); !free && why != "" {
			refused = append(refused, Refusal{Where: l.domain + ": " + one.address.String(), Reason: why})
			continue
		}
		if l.seen {
			one.Source = bpf.AnswerSeen
			one.Expires = s.earlier(d.Expires, min(a.TTL, longestWait)+time.Duration(d.Grace)*time.Second)
		}
		taken = append(taken, one)
	}
	return taken, refused, nil
}

// earlier is an end after some time, or the other one if that is before.
func (s *state) earlier(end uint32, after time.Duration) uint32 {
	at := s.ends(s.now.Add(after))
	if end != 0 {
		return min(end, at)
	}
	return at
}

func (s *state) ownGuard() (guard, error) {
	if s.guard != nil {
		return *s.guard, nil
	}
	g, err := newGuard()
	s.guard = &g
	return g, err
}

// noteOf returns the number of the reason for an address: the domain's own, and
// the names that led to the address.
func (s *state) noteOf(ctx context.Context, d domain, l lesson) (uint32, error) {
	if len(l.Chain) < 2 {
		return d.Note, nil
	}
	notes, err := s.readNotes(ctx)
	if err != nil {
		return 0, err
	}
	chain := strings.Join(l.Chain, " > ")
	if reason := notes.texts[d.Note]; reason != "" {
		chain = reason + ": " + chain
	}
	return notes.number(chain)
}

// letGo has addresses that the resolver found before, and that a domain no longer
// has, end after the domain's grace.
func (s *state) letGo(known *answers, d domain, l lesson, has []answer) error {
	for _, old := range known.all[d.Number] {
		kept := !l.knows(old.address) || old.Source != bpf.AnswerResolved || old.Expires != d.Expires ||
			slices.ContainsFunc(has, func(a answer) bool { return a.address == old.address })
		if kept {
			continue
		}
		old.Expires = s.earlier(d.Expires, time.Duration(d.Grace)*time.Second)
		if err := known.put(old); err != nil {
			return err
		}
	}
	return nil
}

// question is a domain that is to be asked for.
type question struct {
	list, domain string
	due          uint32 // since when
}

// choice says which domains are to be asked for.
type choice func(s *state, list string, d domain) bool

// questions returns the domains of a choice, those first that wait the longest: not
// all may be asked for. Wildcards can't be.
func (s *state) questions(ctx context.Context, wanted choice) (all []question, err error) {
	if s.Shared == nil {
		return nil, nil
	}
	known, err := s.readDomains(ctx)
	if err != nil {
		return nil, err
	}
	for _, name := range s.names() {
		number, _ := s.find(name)
		for _, d := range known.of(uint32(s.lists[number].Identity)) {
			if !d.isWildcard() && !s.isOver(entry{expires: d.Expires}) && wanted(s, name, d) {
				all = append(all, question{name, d.name, d.Due})
			}
		}
	}
	slices.SortStableFunc(all, func(a, b question) int { return cmp.Compare(a.due, b.due) })
	return all, nil
}

// Limits of resolving.
const (
	gather   = 50 * time.Millisecond // how long answers wait at least for others to be written with them
	leisure  = 4                     // so many times as long as the last writing took, for others get the lock, too
	longest  = time.Second / 2       // but no longer than this
	hopeless = 64                    // so many names in a row without an answer, and the rest isn't asked for
)

// refresh asks for domains, without holding a lock, and writes the answers as
// they come.
func (s *Store) refresh(ctx context.Context, wanted choice, change *Change) error {
	var all []question
	err := s.read(ctx, func(st *state) (err error) {
		all, err = st.questions(ctx, wanted)
		return err
	})
	if err != nil || len(all) == 0 {
		return err
	}
	resolver, err := s.resolver()
	if err != nil {
		var none []lesson
		for _, q := range all {
			none = append(none, lesson{list: q.list, domain: q.domain, err: err})
		}
		return s.conclude(ctx, none, change)
	}
	asking, stop := context.WithCancel(ctx)
	defer stop()
	lessons := make(chan lesson)
	go func() {
		defer close(lessons)
		ask(asking, resolver, all, lessons)
	}()
	asked, failed := 0, 0
	for batch := range batches(lessons) {
		if asking.Err() != nil {
			continue // what is asked for still ends
		}
		for _, l := range batch {
			asked++
			if failed++; l.hasAnswer() {
				failed = 0
			}
		}
		if err := s.conclude(ctx, batch, change); err != nil {
			return err
		}
		if failed >= hopeless && asked < len(all) {
			stop()
			change.Notes = append(change.Notes, fmt.Sprintf("%d domains in a row had no answer: %d were not asked for", failed, len(all)-asked))
		}
	}
	return context.Cause(ctx)
}

// conclude writes what was found out, and tells what that changed.
func (s *Store) conclude(ctx context.Context, lessons []lesson, change *Change) error {
	for _, l := range lessons {
		change.conclude(l)
	}
	return s.write(ctx, false, func(st *state) error {
		defer change.count(st)
		return st.learn(ctx, lessons, change)
	})
}

// ask resolves each name once, and sends what it means for each list.
func ask(ctx context.Context, resolver Resolver, all []question, lessons chan<- lesson) {
	lists := map[string][]string{}
	var names []string
	for _, q := range all {
		if lists[q.domain] == nil {
			names = append(names, q.domain)
		}
		lists[q.domain] = append(lists[q.domain], q.list)
	}
	resolver.ResolveAll(ctx, names, func(i int, found dns.Resolution, err error) {
		for _, list := range lists[names[i]] {
			lessons <- lesson{list: list, domain: names[i], Resolution: found, err: err}
		}
	})
}

// batches groups what comes within a short time.
func batches(lessons <-chan lesson) func(yield func([]lesson) bool) {
	return func(yield func([]lesson) bool) {
		var batch []lesson
		var full <-chan time.Time
		wait := gather
		for {
			select {
			case l, more := <-lessons:
				if !more {
					if len(batch) > 0 {
						yield(batch)
					}
					return
				}
				if batch = append(batch, l); full == nil {
					full = time.After(wait)
				}
			case <-full:
				began := time.Now()
				if !yield(batch) {
					go drain(lessons)
					return
				}
				batch, full, wait = nil, nil, min(max(gather, leisure*time.Since(began)), longest)
			}
		}
	}
}

func drain(lessons <-chan lesson) {
	for range lessons {
	}
}

// Refresh implements API.
func (s *Store) Refresh(ctx context.Context) (change Change, next time.Duration, err error) {
	due := false
	err = s.read(ctx, func(st *state) error {
		due, err = st.isDue(ctx)
		return err
	})
	if err != nil {
		return change, 0, err
	}
	if due {
		release, free, err := s.engine.ClaimShared(group)
		switch {
		case err != nil:
			return change, 0, err
		case !free:
			return change, takenWait, nil
		}
		defer release()
		if err := s.catchUp(ctx, &change); err != nil {
			return change, 0, err
		}
	}
	err = s.read(ctx, func(st *state) error {
		next, err = st.nextDue(ctx)
		return err
	})
	return change, next, err
}

// takenWait is how long it is until it is looked again whether others keep domains up
// to date.
const takenWait = 5 * time.Second

// catchUp removes what has ended, and asks for what is due.
func (s *Store) catchUp(ctx context.Context, change *Change) error {
	err := s.write(ctx, false, func(st *state) error {
		if err := st.dropEnded(ctx, change); err != nil {
			return err
		}
		return st.mend(ctx, change)
	})
	if err != nil {
		return err
	}
	return s.refresh(ctx, dueNow, change)
}

// dropEnded removes the addresses of domains that have ended. What else has ended
// can wait for a writer: a list may be large.
func (s *state) dropEnded(ctx context.Context, change *Change) error {
	for _, name := range s.names() {
		if err := s.purgeAddresses(ctx, name, false); err != nil {
			return err
		}
	}
	change.count(s)
	return nil
}

func dueNow(s *state, _ string, d domain) bool { return d.Due <= s.boot }

func (s *state) isDue(ctx context.Context) (bool, error) {
	next, err := s.nextDue(ctx)
	return next == 0, err
}

// mostIdle is how long nothing is due at most: other writers may add domains.
const mostIdle = time.Minute

// nextDue is how long it is until a domain has to be asked for again, or an address
// of one ends.
func (s *state) nextDue(ctx context.Context) (time.Duration, error) {
	at := s.boot + uint32(mostIdle/time.Second)
	if s.Shared == nil {
		return mostIdle, nil
	}
	known, err := s.readDomains(ctx)
	if err != nil {
		return 0, err
	}
	for _, d := range known.all {
		if !d.isWildcard() && !s.isOver(entry{expires: d.Expires}) {
			at = min(at, d.Due)
		}
	}
	for _, l := range s.lists {
		if strings.HasSuffix(nameOf(l), addressesSuffix) && l.Expires != 0 {
			at = min(at, uint32(l.Expires))
		}
	}
	return time.Duration(max(at, s.boot)-s.boot) * time.Second, nil
}

func (c *Change) refuse(r Refusal) {
	c.RefusedN++
	if len(c.Refused) < mostRefusals {
		c.Refused = append(c.Refused, r)
	}
}

// conclude counts how a question ended.
func (c *Change) conclude(l lesson) {
	c.Resolved++
	switch {
	case !l.hasAnswer():
		c.Unanswered++
		c.fail(l, l.err)
	case l.half() != nil:
		c.Unanswered++
		c.fail(l, l.half())
	case l.err != nil:
		c.fail(l, l.err)
	case len(l.Addresses) == 0:
		c.fail(l, errNoAddress)
	}
}

var errNoAddress = errors.New("it has no address")

func (c *Change) fail(l lesson, err error) {
	c.FailedN++
	if len(c.Failed) < mostRefusals {
		c.Failed = append(c.Failed, Refusal{Where: l.domain, Reason: strings.TrimPrefix(err.Error(), "resolve "+l.domain+": ")})
	}
}
