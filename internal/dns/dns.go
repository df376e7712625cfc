// Package dns says which addresses names have: it asks the servers of
// resolv.conf, and reads the answers that others got and that the program "dns"
// saw. It is the only importer of miekg/dns.
package dns

import (
	"cmp"
	"errors"
	"net"
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
	owners := map[string][]wire.RR{}
	for _, r := range records {
		if h := r.Header(); h.Class == wire.ClassINET {
			owner := wire.CanonicalName(h.Name)
			owners[owner] = append(owners[owner], r)
		}
	}
	seen := map[string]bool{}
	for name = wire.CanonicalName(name); name != ""; {
		switch {
		case seen[name]:
			return f, errLoop
		case len(seen) > maxChain:
			return f, errLong
		}
		seen[name] = true
		if host := hostName(name); host != "" {
			f.chain = append(f.chain, host)
		}
		name = f.take(owners[name])
	}
	f.addresses = merge(f.addresses)
	return f, nil
}

// take takes the addresses that one name has, and returns where it points to.
func (f *found) take(records []wire.RR) (alias string) {
	ttl := f.ttl
	for _, record := range records {
		var ip net.IP
		switch r := record.(type) {
		case *wire.CNAME:
			alias = wire.CanonicalName(r.Target)
		case *wire.A:
			ip = r.A
		case *wire.AAAA:
			ip = r.AAAA
		default:
			continue
		}
		own := shorter(ttl, seconds(record.Header().Ttl))
		f.ttl = shorter(f.ttl, own)
		if addr, ok := netip.AddrFromSlice(ip); ok {
			f.addresses = append(f.addresses, Address{addr.Unmap(), own})
		}
	}
	return alias
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
