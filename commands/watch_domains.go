package commands

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"bpfnet/internal/blocklist"
	"bpfnet/internal/datapath"
	"bpfnet/internal/dns"
)

// dnsProgram is the built-in program that sees the answers of DNS servers.
const dnsProgram = "dns"

// AnswerSource is the open answers that an instance of dns sees.
type AnswerSource interface {
	Notes() []string
	// Read emits answers until ctx ends, which is no error; ErrNotFound says that the
	// instance was unloaded.
	Read(ctx context.Context, emit func([]dns.Answer) error) error
	// Lost is how many were not told since the source was opened; it may be called
	// while Read runs.
	Lost() (uint64, error)
	// Drained says whether all that have come were told; it may be called while Read runs.
	Drained() bool
	Close() error
}

// domainKeeper keeps the addresses of domains on lists up to date while something
// else goes on: it asks for them when it is time, and takes those that are in
// answers on the wire, of all instances of dns that there are.
type domainKeeper struct {
	backend     Backend
	api         blocklist.API
	lockTimeout time.Duration
	steal       bool
	note        func(string)
	said        chan string   // what there is to tell people
	unsaid      atomic.Uint64 // what found no room there: blocking doesn't wait for who reads
	working     sync.WaitGroup
	stop        context.CancelFunc

	mu      sync.Mutex
	sources map[string]*answerSource // by instance
}

type answerSource struct {
	AnswerSource
	observed bool
	lost     uint64 // how many were told
}

// mostSaid is how much waits to be told.
const mostSaid = 1000

// keepDomains starts a keeper; end ends it.
func (e *Env) keepDomains(c *cli.Context, b Backend) (*domainKeeper, error) {
	ctx, stop := context.WithCancel(c.Context)
	k := &domainKeeper{
		backend: b, api: b.Blocklist(), lockTimeout: c.Duration("lock-timeout"), steal: c.Bool("steal"),
		note: func(text string) { e.note(c, "note: %s", text) }, said: make(chan string, mostSaid), stop: stop,
		sources: map[string]*answerSource{},
	}
	err := k.openAnswers(ctx)
	if err == nil {
		err = k.noteUnseen(ctx)
	}
	if err != nil {
		stop()
		for _, source := range k.sources {
			_ = source.Close() // nothing was read
		}
		return nil, err
	}
	for _, source := range k.sources {
		e.notes(c, source.Notes())
	}
	k.observeAll(ctx)
	k.working.Go(func() { refreshDomains(ctx, k.api, k.say) })
	k.working.Go(func() { k.follow(ctx) })
	return k, nil
}

// openAnswers opens what the loaded instances of dns see, of those that aren't among
// the sources yet.
func (k *domainKeeper) openAnswers(ctx context.Context) error {
	instances, err := k.backend.Instances(ctx, "")
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, in := range instances {
		if !isDNS(in) || k.sources[in.Name] != nil {
			continue
		}
		source, err := k.backend.Answers(ctx, in.Name, k.lockTimeout, k.steal)
		if err != nil {
			return err
		}
		k.sources[in.Name] = &answerSource{AnswerSource: source}
	}
	return nil
}

func isDNS(in datapath.Instance) bool { return in.Builtin && in.Source == dnsProgram }

// noteUnseen says how answers come to be seen, if lists have domains and none are.
// Domains are still asked for.
func (k *domainKeeper) noteUnseen(ctx context.Context) error {
	instances, err := k.backend.Instances(ctx, "")
	if err != nil {
		return err
	}
	loaded := ""
	for _, in := range instances {
		switch {
		case !isDNS(in):
		case len(in.Attachments) > 0:
			return nil
		default:
			loaded = in.Name
		}
	}
	overview, err := k.api.Overview(ctx)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(overview.Lists, func(l blocklist.List) bool { return l.Domains > 0 }) {
		k.note("addresses of domains in answers aren't seen: " + unseen(loaded))
	}
	return nil
}

// unseen says how answers come to be seen.
func unseen(loaded string) string {
	if loaded == "" {
		return "bpfnet load dns; bpfnet attach tc dns --dev DEVICE --direction both"
	}
	return fmt.Sprintf("%s is not attached: bpfnet attach tc %s --dev DEVICE --direction both", loaded, loaded)
}

// end waits until nothing works any more. What waits to be told isn't.
func (k *domainKeeper) end() {
	k.stop()
	k.working.Wait()
	if n := k.unsaid.Load(); n > 0 {
		k.note(fmt.Sprintf("what domains led to wasn't told %d times, because nobody read it", n))
	}
}

func (k *domainKeeper) say(format string, args ...any) {
	select {
	case k.said <- fmt.Sprintf(format, args...):
	default:
		k.unsaid.Add(1)
	}
}

// failedRefresh is how long it is until a refresh that failed is tried again.
const failedRefresh = 10 * time.Second

// refreshDomains asks for domains when it is time, until ctx ends. It says when that
// begins to fail.
func refreshDomains(ctx context.Context, api blocklist.API, say func(format string, args ...any)) {
	unanswered, failure := uint64(0), ""
	for {
		change, next, err := api.Refresh(ctx)
		failed := ""
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			if failed = err.Error(); failed != failure {
				say("domains are not up to date: %v", err)
			}
			next = failedRefresh
		case change.Resolved > 0:
			if change.Unanswered != unanswered {
				say("domains without an answer: %d of %d asked for", change.Unanswered, change.Resolved)
			}
			unanswered = change.Unanswered
		}
		failure = failed
		select {
		case <-ctx.Done():
			return
		case <-time.After(max(next, time.Second)):
		}
	}
}

// lookForAnswers is the time between two looks which instances there are, and whether
// they lost answers.
const lookForAnswers = time.Second

// follow observes what instances see that are loaded meanwhile, until ctx ends.
func (k *domainKeeper) follow(ctx context.Context) {
	look := time.NewTicker(lookForAnswers)
	defer look.Stop()
	failure := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-look.C:
		}
		k.tellLost()
		failed := ""
		if err := k.openAnswers(ctx); err != nil {
			failed = err.Error()
		}
		if failed != "" && failed != failure && ctx.Err() == nil {
			k.say("answers may not be seen: %s", failed)
		}
		failure = failed
		k.observeAll(ctx)
	}
}

// tellLost says when sources lost more answers than it said before.
func (k *domainKeeper) tellLost() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for name, source := range k.sources {
		if lost, err := source.Lost(); err == nil && lost != source.lost {
			source.lost = lost
			k.say("answers that %s lost so far, because they weren't read fast enough: %d", name, lost)
		}
	}
}

// observeAll observes the sources that nothing observes yet.
func (k *domainKeeper) observeAll(ctx context.Context) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for name, source := range k.sources {
		if source.observed {
			continue
		}
		source.observed = true
		k.working.Go(func() {
			k.observe(ctx, source)
			k.mu.Lock()
			defer k.mu.Unlock()
			delete(k.sources, name)
			_ = source.Close() // it was only read
		})
	}
}

// observe blocks the addresses that answers have, until ctx ends or the instance is
// unloaded.
func (k *domainKeeper) observe(ctx context.Context, source AnswerSource) {
	follower := k.api.Follow()
	defer follower.Close()
	var told time.Time
	refused := map[string]bool{} // that were told
	err := source.Read(ctx, func(answers []dns.Answer) error {
		for _, a := range answers {
			seen, err := follower.Observe(ctx, a)
			if ctx.Err() != nil {
				return nil
			}
			if err != nil && time.Since(told) > failedRefresh {
				told = time.Now()
				k.say("addresses of %s are not blocked: %v", a.Name, err)
			}
			for _, s := range seen {
				k.tell(a, s, refused)
			}
		}
		return nil
	})
	if err != nil && ctx.Err() == nil {
		k.say("answers are no longer seen: %v", err)
	}
}

// mostTold is how many refused addresses are told.
const mostTold = 1000

// tell says what an answer led to, and how long that took.
func (k *domainKeeper) tell(a dns.Answer, s blocklist.Sighting, refused map[string]bool) {
	if len(s.Addresses) > 0 {
		k.say("%s: list %s blocks %s, %.1f ms after the answer for %s", s.Domain, s.List, joined(s.Addresses), sinceAnswer(a).Seconds()*1e3, a.Name)
	}
	for _, r := range s.Refused {
		if !refused[r.Where] && len(refused) < mostTold {
			refused[r.Where] = true
			k.say("refused: %s: %s", r.Where, r.Reason)
		}
	}
}

func joined(addresses []netip.Addr) string {
	var texts []string
	for _, a := range addresses {
		texts = append(texts, a.String())
	}
	return strings.Join(texts, ", ")
}

// sinceAnswer is how long ago an answer was seen.
func sinceAnswer(a dns.Answer) time.Duration { return sinceBoot() - a.Time }

// sinceBoot is the clock of programs.
func sinceBoot() time.Duration {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &now) // it is there
	return time.Duration(now.Nano())
}

// Answers implements Backend.
func (s *system) Answers(ctx context.Context, instance string, lockTimeout time.Duration, steal bool) (AnswerSource, error) {
	return dns.Open(ctx, s.Engine, instance, lockTimeout, steal)
}
