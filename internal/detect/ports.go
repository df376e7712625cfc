package detect

import (
	"net/netip"
	"slices"
)

// mostPorts is how many ports of peers are known of an endpoint.
const mostPorts = 4096

// ports are those of peers that an endpoint has tried in a window.
type ports struct {
	last   map[portKey]clock // when each was tried last
	sums   map[address]int   // how many of each peer are in last
	top    int               // none of sums is larger
	oldest clock             // none of last is older
	pruned clock             // when what is older than the window was dropped
}

type portKey struct {
	address
	port uint16
}

// add adds an attempt of a time. If there is no room, it forgets what there was, and
// returns how much that is.
func (p *ports) add(to PeerPort, at, now, window clock) (forgot uint64) {
	key := portKey{to.Address.As16(), to.Port}
	last, known := p.last[key]
	if at <= now-window || known && last >= at {
		return 0
	}
	if !known && len(p.last) >= mostPorts {
		if p.oldest <= now-window {
			p.prune(now, window)
		}
		if len(p.last) >= mostPorts {
			forgot = uint64(len(p.last))
			*p = ports{pruned: now}
		}
	}
	if p.last == nil {
		p.last, p.sums, p.oldest = map[portKey]clock{}, map[address]int{}, at
	}
	if !known {
		p.sums[key.address]++
		p.top = max(p.top, p.sums[key.address])
	}
	p.last[key], p.oldest = at, min(p.oldest, at)
	return forgot
}

func (p *ports) prune(now, window clock) {
	p.oldest, p.pruned = now, now
	for key, at := range p.last {
		if at > now-window {
			p.oldest = min(p.oldest, at)
			continue
		}
		delete(p.last, key)
		if p.sums[key.address]--; p.sums[key.address] == 0 {
			delete(p.sums, key.address)
		}
	}
	if len(p.last) == 0 {
		*p = ports{pruned: now} // a map never gets smaller
	}
}

// most is how many ports of one peer were tried, the most of any, and of whom, unless
// there can't be so many.
func (p *ports) most(atLeast uint64, now, window clock) (n uint64, peer netip.Addr) {
	if uint64(p.top) < atLeast && now-p.pruned < window/buckets {
		return 0, peer
	}
	p.prune(now, window)
	p.top = 0
	for a, sum := range p.sums {
		if ip := a.ip(); sum > p.top || sum == p.top && ip.Less(peer) {
			p.top, peer = sum, ip
		}
	}
	return uint64(p.top), peer
}

// some are the lowest ports of a peer.
func (p *ports) some(peer netip.Addr, most int) []PeerPort {
	var all []PeerPort
	for key := range p.last {
		if ip := key.ip(); ip == peer {
			all = append(all, PeerPort{ip, key.port})
		}
	}
	slices.SortFunc(all, func(a, b PeerPort) int { return int(a.Port) - int(b.Port) })
	return all[:min(most, len(all))]
}
