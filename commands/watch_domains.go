package commands

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"bpfnet/internal/blocklist"
	"bpfnet/internal/dns"
)

// dnsProgram is the built-in program that sees the answers of DNS servers.
const dnsProgram = "dns"

// AnswerSource is the open answers that an instance of dns sees.
type AnswerSource interface {
	Notes() []string
	// Read emits answers until ctx ends, which is no error.
	Read(ctx context.Context, emit func([]dns.Answer) error) error
	Close() error
}

// domainKeeper keeps the addresses of domains on lists up to date while something
// else goes on: it asks for them when it is time, and takes those that are in
// answers on the wire.
type domainKeeper struct {
	api     blocklist.API
	sources []AnswerSource
	said    chan string // what there is to tell people
	working sync.WaitGroup
	stop    context.CancelFunc
}

// keepDomains starts a keeper; end ends it.
func (e *Env) keepDomains(c *cli.Context, b Backend) (*domainKeeper, error) {
	k := &domainKeeper{api: b.Blocklist(), said: make(chan string)}
	if err := e.openAnswers(c, b, k); err != nil {
		k.close()
		return nil, err
	}
	ctx, stop := context.WithCancel(c.Context)
	k.stop = stop
	k.working.Go(func() { k.refresh(ctx) })
	for _, source := range k.sources {
		k.working.Go(func() { k.observe(ctx, source) })
	}
	return k, nil
}

// openAnswers opens what the loaded instances of dns see. Where none does, domains
// are still asked for.
func (e *Env) openAnswers(c *cli.Context, b Backend, k *domainKeeper) error {
	instances, err := b.Instances(c.Context, "")
	if err != nil {
		return err
	}
	loaded, attached := "", false
	for _, in := range instances {
		if !in.Builtin || in.Source != dnsProgram {
			continue
		}
		loaded, attached = in.Name, attached || len(in.Attachments) > 0
		source, err := b.Answers(c.Context, in.Name, c.Duration("lock-timeout"), c.Bool("steal"))
		if err != nil {
			return err
		}
		k.sources = append(k.sources, source)
		e.notes(c, source.Notes())
	}
	if attached {
		return nil
	}
	overview, err := k.api.Overview(c.Context)
	if err != nil {
		return err
	}
	for _, l := range overview.Lists {
		if l.Domains > 0 {
			e.note(c, "note: addresses of domains in answers aren't seen: %s", unseen(loaded))
			return nil
		}
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

// end waits until nothing works any more. What it still wants to say is lost.
func (k *domainKeeper) end() {
	k.stop()
	done := make(chan struct{})
	go func() {
		k.working.Wait()
		close(done)
	}()
	for {
		select {
		case <-k.said:
		case <-done:
			k.close()
			return
		}
	}
}

func (k *domainKeeper) close() {
	for _, source := range k.sources {
		_ = source.Close() // it was only read
	}
}

func (k *domainKeeper) say(format string, args ...any) { k.said <- fmt.Sprintf(format, args...) }

// failedRefresh is how long it is until a refresh that failed is tried again.
const failedRefresh = 10 * time.Second

// refresh asks for domains when it is time, until ctx ends.
func (k *domainKeeper) refresh(ctx context.Context) {
	unanswered := uint64(0)
	for {
		change, next, err := k.api.Refresh(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			k.say("domains are not up to date: %v", err)
			next = failedRefresh
		case change.Resolved > 0:
			if change.Unanswered != unanswered {
				k.say("domains without an answer: %d of %d asked for", change.Unanswered, change.Resolved)
			}
			unanswered = change.Unanswered
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(max(next, time.Second)):
		}
	}
}

// observe blocks the addresses that answers have, until ctx ends.
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
func sinceAnswer(a dns.Answer) time.Duration {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return 0
	}
	return time.Duration(now.Nano()) - a.Time
}

// Answers implements Backend.
func (s *system) Answers(ctx context.Context, instance string, lockTimeout time.Duration, steal bool) (AnswerSource, error) {
	m, err := s.OpenMap(instance, "dns_events", false)
	if err != nil {
		return nil, err
	}
	return dns.Open(ctx, m, instance+"/dns_events", lockTimeout, steal)
}
