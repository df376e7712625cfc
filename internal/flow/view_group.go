package flow

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"bpfnet/internal/endpoint"
	"bpfnet/internal/fault"
	"bpfnet/internal/nearest"
	"bpfnet/internal/sample"
)

// party is who is at one end of a flow, as far as it is known, or as far as the flows
// of a group have it in common.
type party struct {
	address             netip.Addr
	port                uint16
	pid                 uint32
	start               uint64
	command, executable string
	uid                 uint32
	isUser              bool // uid is known
	podUID              string
	namespace, pod      string
	containerID         string
	container           string
	netns               uint64
}

// identity leaves out what a party is called by besides what it is known by: names
// come later, and change.
func (p party) identity() party {
	if p.pid != 0 {
		p.command, p.executable, p.uid, p.isUser = "", "", 0, false
	}
	if p.podUID != "" {
		p.namespace, p.pod = "", ""
	}
	if p.containerID != "" {
		p.container = ""
	}
	return p
}

func (p *party) comparePods(other *party) int {
	return cmp.Or(cmp.Compare(p.namespace, other.namespace), cmp.Compare(p.pod, other.pod), cmp.Compare(p.podUID, other.podUID))
}

func (p *party) compare(other *party) int {
	return cmp.Or(p.comparePods(other), cmp.Compare(p.container, other.container), cmp.Compare(p.containerID, other.containerID),
		cmp.Compare(p.command, other.command), cmp.Compare(p.executable, other.executable), cmp.Compare(p.pid, other.pid), cmp.Compare(p.start, other.start),
		cmp.Compare(p.uid, other.uid), p.address.Compare(other.address), cmp.Compare(p.port, other.port), cmp.Compare(p.netns, other.netns))
}

func (p *party) own(o endpoint.Owner) {
	if o.Pod != nil {
		p.podUID, p.namespace, p.pod = o.Pod.UID, sample.Value(o.Pod.Namespace), sample.Value(o.Pod.Name)
	}
	if o.Container != nil {
		p.containerID, p.container = o.Container.ID, sample.Value(o.Container.Name)
	}
}

// aspect is what flows can have in common at one end: how to take it over.
type aspect func(to, from *party)

var aspects = map[string]aspect{
	"process": func(to, from *party) {
		to.pid, to.start, to.command, to.executable, to.uid, to.isUser = from.pid, from.start, from.command, from.executable, from.uid, from.isUser
	},
	"command":    func(to, from *party) { to.command = from.command },
	"executable": func(to, from *party) { to.executable = from.executable },
	"user":       func(to, from *party) { to.uid, to.isUser = from.uid, from.isUser },
	"pod":        func(to, from *party) { to.podUID, to.namespace, to.pod = from.podUID, from.namespace, from.pod },
	"container": func(to, from *party) {
		to.podUID, to.namespace, to.pod = from.podUID, from.namespace, from.pod
		to.containerID, to.container = from.containerID, from.container
	},
	"netns":   func(to, from *party) { to.netns = from.netns },
	"address": func(to, from *party) { to.address = from.address },
	"port":    func(to, from *party) { to.port = from.port },
}

// grouping is what flows are grouped by.
type grouping struct {
	local, peer      []aspect
	transport, state bool
	directed         bool
	named            bool // it has names
}

// dimensions are the words that groupings are made of.
var dimensions = func() map[string]func(*grouping) {
	all := map[string]func(*grouping){
		"transport":  func(g *grouping) { g.transport = true },
		"state":      func(g *grouping) { g.state = true },
		"local":      func(g *grouping) { g.local = append(g.local, aspects["address"]) },
		"local_port": func(g *grouping) { g.local = append(g.local, aspects["port"]) },
		"peer":       func(g *grouping) { g.peer, g.named = append(g.peer, aspects["address"]), true },
		"peer_port":  func(g *grouping) { g.peer = append(g.peer, aspects["port"]) },
	}
	for word, a := range aspects {
		if word != "address" && word != "port" {
			all[word] = func(g *grouping) { g.local = append(g.local, a) }
		}
		all["src."+word] = func(g *grouping) { g.local, g.directed = append(g.local, a), true }
		all["dst."+word] = func(g *grouping) { g.peer, g.directed = append(g.peer, a), true }
	}
	return all
}()

// Dimensions lists what View.By can have.
func Dimensions() []string {
	var words []string
	for word := range dimensions {
		words = append(words, word)
	}
	slices.Sort(words)
	return words
}

// newGrouping reads dimensions. Those with a direction don't go with those without,
// but for the transport.
func newGrouping(by []string) (g grouping, err error) {
	plain := ""
	for _, word := range by {
		add := dimensions[word]
		if add == nil {
			return g, fault.New(fault.ErrUsage, "group by %q: no such dimension", word).Hint("%s", nearest.Hint(word, Dimensions()))
		}
		add(&g)
		if !strings.Contains(word, ".") && word != "transport" {
			plain = word
		}
	}
	if g.directed && plain != "" {
		return g, fault.New(fault.ErrUsage, "group by %s: %q has no direction, others have", strings.Join(by, ","), plain)
	}
	return g, nil
}

// key tells groups apart.
type key struct {
	local, peer      party
	transport, state string
}

// mask makes an entry of what the flows of a group have in common.
func (g *grouping) mask(e *entry, local, peer *party, r *Row) {
	*e = entry{}
	for _, take := range g.local {
		take(&e.local, local)
	}
	for _, take := range g.peer {
		take(&e.peer, peer)
	}
	if g.transport {
		e.transport = r.Transport
	}
	if g.state {
		e.state = sample.Value(r.TCP).State
	}
}

func (e *entry) key() key {
	return key{e.local.identity(), e.peer.identity(), e.transport, e.state}
}
