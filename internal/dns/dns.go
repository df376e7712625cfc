// Package dns says which addresses names have: it asks the servers of
// resolv.conf, and reads the answers that others got and that the program "dns"
// saw. It is the only importer of miekg/dns.
package dns

import (
	"cmp"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"time"

	wire "github.com/miekg/dns"

	"bpfnet/internal/fault"
)

// maxChain is how many CNAMEs are followed; resolvers stop at about as many.
const maxChain = 16

// ErrNoName says that a name doesn't exist, NXDOMAIN.
var ErrNoName = errors.New("no such name (NXDOMAIN)")

// Address is an address that a name resolves to, for TTL from now.
type Address struct {
	Addr netip.Addr
	TTL  time.Duration // the shortest of the records that lead to it
}

// Resolution is what a name resolved to.
type Resolution struct {
	Addresses []Address // A and AAAA, sorted, without duplicates

	// Chain has the names that the answer led through, the asked one first, in
	// lower case and without a last dot. What isn't a name that a host could have
	// is followed, but left out.
	Chain []string

	// TTL is when to ask again: the shortest of the answer's records, CNAMEs and
	// the SOA of a negative answer too; 0 if they don't tell. It is there with
	// ErrNoName, too.
	TTL time.Duration

	// Failed4 and Failed6 say why the addresses of one family aren't known, when
	// those of the other are. They tell nothing about what addresses there are.
	Failed4, Failed6 error
}

// found is what the answer section of one message says about a name.
type found struct {
	addresses []Address
	chain     []string
	ttl       time.Duration // the shortest of those records; noTTL without any
}

const noTTL = time.Duration(-1)

var (
	errLoop = errors.New("its CNAMEs lead in a circle")
	errLong = errors.New("its CNAMEs lead on too often")
)

// follow finds the addresses that name, given as on the wire, has in records,
// through their CNAMEs. Records that no chain leads to are ignored. A chain
// without an end is an error.
func follow(records []wire.RR, name string) (found, error) {
	f := found{ttl: noTTL}
	name = wire.CanonicalName(name)
	seen := map[string]bool{}
	for range maxChain + 1 {
		if seen[name] {
			return f, errLoop
		}
		seen[name] = true
		if host := hostName(name); host != "" {
			f.chain = append(f.chain, host)
		}
		alias, ttl := f.read(records, name)
		if alias == "" {
			f.addresses = merge(f.addresses)
			return f, nil
		}
		f.ttl = shorter(f.ttl, ttl)
		name = alias
	}
	return f, errLong
}

// read takes the addresses that a name has itself, or returns where it points.
func (f *found) read(records []wire.RR, name string) (alias string, ttl time.Duration) {
	for _, record := range records {
		header := record.Header()
		if header.Class != wire.ClassINET || wire.CanonicalName(header.Name) != name {
			continue
		}
		var ip []byte
		switch r := record.(type) {
		case *wire.CNAME:
			return wire.CanonicalName(r.Target), seconds(header.Ttl)
		case *wire.A:
			ip = r.A
		case *wire.AAAA:
			ip = r.AAAA
		}
		if addr, ok := netip.AddrFromSlice(ip); ok {
			ttl := shorter(f.ttl, seconds(header.Ttl))
			f.addresses = append(f.addresses, Address{addr.Unmap(), ttl})
		}
	}
	for _, a := range f.addresses {
		f.ttl = shorter(f.ttl, a.TTL)
	}
	return "", 0
}

// merge sorts addresses and leaves one of each, with the shortest TTL.
func merge(addresses []Address) []Address {
	slices.SortFunc(addresses, func(a, b Address) int {
		return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.TTL, b.TTL))
	})
	return slices.CompactFunc(addresses, func(a, b Address) bool { return a.Addr == b.Addr })
}

// seconds is a TTL; the highest bit makes it 0 (RFC 2181, 8).
func seconds(ttl uint32) time.Duration {
	if ttl > 1<<31-1 {
		return 0
	}
	return time.Duration(ttl) * time.Second
}

func shorter(a, b time.Duration) time.Duration {
	if a == noTTL || b == noTTL {
		return max(a, b)
	}
	return min(a, b)
}

// hostName is a name as people write it, "" if it has other characters than
// letters, digits, hyphens and underscores.
func hostName(name string) string {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	for i := range len(name) {
		switch c := name[i]; {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '-', c == '_', c == '.':
		default:
			return ""
		}
	}
	if _, ok := wire.IsDomainName(name); !ok {
		return ""
	}
	return name
}

// absolute is a name as it is asked for.
func absolute(name string) (string, error) {
	host := hostName(name)
	if host == "" {
		return "", fault.New(fault.ErrUsage, "resolve %q: is not a name", name)
	}
	return host + ".", nil
}
