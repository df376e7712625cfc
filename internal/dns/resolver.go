package dns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"time"

	wire "github.com/miekg/dns"

	"bpfnet/internal/fault"
)

// mostAtOnce is how many names ResolveAll asks for at the same time.
const mostAtOnce = 32

// Resolver asks the servers of a resolv.conf. It is safe for concurrent use and
// keeps no answers.
type Resolver struct {
	config    config
	namespace string
	first     atomic.Uint32 // the server that is asked first
}

// NewResolver returns a Resolver that asks the servers of a resolv.conf(5), by
// default /etc/resolv.conf, from the network namespace at a path, "" for that of
// the process. The thread that it is called on doesn't matter. Without a server it
// fails with fault.ErrNotFound.
func NewResolver(resolvConf, namespace string) (*Resolver, error) {
	c, err := readConfig(resolvConf)
	if err != nil {
		return nil, err
	}
	return &Resolver{config: c, namespace: namespace}, nil
}

// Resolve asks for the addresses of a name, which is absolute: no search list is
// used. A name that doesn't exist is ErrNoName, one that has no addresses a
// Resolution without them. When only one family could be asked, and has addresses,
// the other's error is in Failed4 or Failed6; else it is returned.
func (r *Resolver) Resolve(ctx context.Context, name string) (Resolution, error) {
	full, err := absolute(name)
	if err == nil {
		err = context.Cause(ctx) // not after a socket was made: many names may be left
	}
	if err != nil {
		return Resolution{}, err
	}
	four, six := make(chan half, 1), make(chan half, 1)
	first := r.start()
	// Neither runs on the caller's thread, which may be in another namespace.
	go func() { four <- r.half(ctx, first, full, wire.TypeA) }()
	go func() { six <- r.half(ctx, first, full, wire.TypeAAAA) }()
	resolution, err := join(<-four, <-six)
	if err != nil {
		err = fmt.Errorf("resolve %s: %w", full[:len(full)-1], err)
	}
	return resolution, err
}

// ResolveAll resolves many names at the same time. For each one, done is called
// once with its index, as soon as it is known, always by the caller's goroutine.
func (r *Resolver) ResolveAll(ctx context.Context, names []string, done func(i int, res Resolution, err error)) {
	type result struct {
		i   int
		res Resolution
		err error
	}
	next := make(chan int)
	results := make(chan result)
	for range min(mostAtOnce, len(names)) {
		go func() {
			for i := range next {
				res, err := r.Resolve(ctx, names[i])
				results <- result{i, res, err}
			}
		}()
	}
	go func() {
		for i := range names {
			next <- i
		}
		close(next)
	}()
	for range names {
		got := <-results
		done(got.i, got.res, got.err)
	}
}

// half is what is known of one family.
type half struct {
	found
	err error
}

// join makes one resolution of the two families. Some servers say that a name
// doesn't exist when it has no addresses of one family: both have to say so.
func join(four, six half) (Resolution, error) {
	res := Resolution{
		Addresses: merge(append(four.addresses, six.addresses...)),
		Chain:     four.chain,
		TTL:       max(shorter(four.ttl, six.ttl), 0),
	}
	if len(six.chain) > len(four.chain) {
		res.Chain = six.chain
	}
	no4, no6 := errors.Is(four.err, ErrNoName), errors.Is(six.err, ErrNoName)
	switch {
	case no4 && no6:
		return res, ErrNoName
	case four.err != nil && !no4 && len(six.addresses) > 0:
		res.Failed4 = four.err
	case six.err != nil && !no6 && len(four.addresses) > 0:
		res.Failed6 = six.err
	case four.err != nil && !no4:
		return Resolution{}, four.err
	case six.err != nil && !no6:
		return Resolution{}, six.err
	}
	return res, nil
}

// start is the number of the server that a name is asked of first.
func (r *Resolver) start() int {
	if r.config.rotate {
		return int(r.first.Add(1) % uint32(len(r.config.servers)))
	}
	return int(r.first.Load())
}

// half asks one server after the other for the addresses of one family.
func (r *Resolver) half(ctx context.Context, first int, name string, qtype uint16) half {
	n := len(r.config.servers)
	var errs []error
	for try := range n * r.config.attempts {
		at := (first + try) % n
		h, again := r.askOne(ctx, r.config.servers[at], name, qtype)
		if !again || ctx.Err() != nil {
			if try > 0 && !again && !r.config.rotate {
				r.first.Store(uint32(at)) // those before it would hold up the next name, too
			}
			return h
		}
		if try < n {
			errs = append(errs, h.err)
		}
	}
	return half{found{ttl: noTTL}, fault.Join(errs...)}
}

// askOne asks one server; again says that another one may know better.
func (r *Resolver) askOne(ctx context.Context, server netip.AddrPort, name string, qtype uint16) (h half, again bool) {
	reply, err := r.ask(ctx, server, name, qtype)
	if err != nil {
		return half{found{ttl: noTTL}, err}, true
	}
	switch reply.Rcode {
	case wire.RcodeSuccess, wire.RcodeNameError:
	case wire.RcodeServerFailure:
		return half{found{ttl: noTTL}, fmt.Errorf("%s failed (SERVFAIL)", at(server))}, true
	case wire.RcodeRefused:
		return half{found{ttl: noTTL}, fmt.Errorf("%s refused (REFUSED)", at(server))}, true
	default:
		return half{found{ttl: noTTL}, fmt.Errorf("%s failed (%s)", at(server), rcode(reply.Rcode))}, true
	}
	f, err := follow(reply.Answer, name)
	if err != nil {
		return half{f, fmt.Errorf("%s: %w", at(server), err)}, true
	}
	if len(f.addresses) == 0 {
		f.ttl = shorter(f.ttl, negativeTTL(reply))
		if reply.Rcode == wire.RcodeNameError {
			return half{f, ErrNoName}, false
		}
	}
	return half{f, nil}, false
}

func rcode(code int) string {
	if text, ok := wire.RcodeToString[code]; ok {
		return text
	}
	return fmt.Sprintf("code %d", code)
}

// negativeTTL is how long nothing may be believed (RFC 2308, 5).
func negativeTTL(reply *wire.Msg) time.Duration {
	for _, record := range reply.Ns {
		if soa, ok := record.(*wire.SOA); ok {
			return min(seconds(soa.Hdr.Ttl), seconds(soa.Minttl))
		}
	}
	return noTTL
}
