package commands

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"bpfnet/internal/alert"
	"bpfnet/internal/detect"
	"bpfnet/output"
)

// fanoutRule looks for endpoints that contact many others.
type fanoutRule struct{ *detect.Fanouts }

func (r fanoutRule) step(s samples) (all []found) {
	if s.peers == nil {
		return nil
	}
	for _, f := range r.Step(*s.peers) {
		all = append(all, foundAs(alert.OfFanout(f), f.Rule.String(), func() string {
			return episodeLine(alert.RuleFanout, f.Rule, f.Episode, output.Count, someText(f.Ended.IsZero(), 2, f.Peers))
		}))
	}
	return all
}

func (r fanoutRule) conclude(note func(string)) error {
	concludeEpisodes(r, "fan-outs", note)
	return lostPeers(r.Lost(), note)
}

func lostPeers(n uint64, note func(string)) error {
	return lossOf(n, "peers that made room for others before they were read, or whose endpoints were too many", "peers that weren't read", morePeers, note)
}

// someText has the first of what an alert names, as long as it is on.
func someText[T any](on bool, most int, of []T) string {
	if !on || len(of) == 0 {
		return ""
	}
	text := strings.Trim(fmt.Sprint(of[:min(most, len(of))]), "[]")
	if len(of) > most {
		text += " ..."
	}
	return text
}

// scanRule looks for endpoints that try much.
type scanRule struct{ *detect.Scans }

func (r scanRule) step(s samples) (all []found) {
	if s.peers == nil {
		return nil
	}
	for _, f := range r.Step(*s.peers) {
		all = append(all, foundAs(alert.OfScan(f), f.Rule.String(), func() string {
			ends := make([]alert.End, len(f.Ports))
			for i, p := range f.Ports {
				ends[i] = alert.End{Address: p.Address, Port: alert.Known(p.Port)}
			}
			return episodeLine(alert.RuleScan, f.Rule, f.Episode, output.Count, someText(f.Ended.IsZero(), 1, ends))
		}))
	}
	return all
}

func (r scanRule) conclude(note func(string)) error {
	concludeEpisodes(r, "scans", note)
	return cmp.Or(lostPeers(r.Lost(), note),
		lossOf(r.Forgot(), "ports and attempts that --scan didn't count, because there were too many at once", "ports and attempts that weren't counted", "a shorter window takes fewer", note))
}

// findInternal finds the peers that aren't external: this machine, what is near the
// host sides of endpoints, endpoints, and DNS servers; and says so.
func (e *Env) findInternal(c *cli.Context, b Backend, r alertRules) (detect.Internal, error) {
	const always = "loopback, link-local and multicast addresses"
	in := detect.Internal{Prefixes: r.internal}
	if r.all {
		e.note(c, "note: --fanout counts all peers but %s", strings.Join(append(texts(merged(in.Prefixes)), always), ", "))
		return in, nil
	}
	found, err := b.Endpoints().List(c.Context)
	if err != nil {
		return in, err
	}
	attachments, err := b.Attachments(c.Context, r.peers)
	if err != nil {
		return in, err
	}
	var hostSides []uint32
	var near []netip.Addr
	for _, one := range found.Endpoints {
		for _, i := range one.Interfaces {
			near = append(near, i.Addresses...)
			if i.IfIndex != nil {
				hostSides = append(hostSides, uint32(*i.IfIndex))
			}
		}
	}
	for _, a := range attachments {
		if a.IfIndex != nil && !a.Defunct {
			hostSides = append(hostSides, *a.IfIndex)
		}
	}
	around, err := b.Endpoints().Surroundings(hostSides)
	if err != nil {
		return in, err
	}
	near = slices.Concat(near, around.Addresses, e.Nameservers())
	in.Endpoints, in.Prefixes = true, slices.Concat(in.Prefixes, around.Networks)
	for _, a := range near {
		in.Prefixes = append(in.Prefixes, netip.PrefixFrom(a.WithZone(""), a.BitLen()))
	}
	in.Prefixes = merged(in.Prefixes)
	e.note(c, "note: --fanout doesn't count %s, nor endpoints; --internal PREFIX adds more, such as the Service CIDR, which a node doesn't tell",
		strings.Join(append(texts(in.Prefixes), always), ", "))
	return in, nil
}

// merged leaves out what is in another prefix, or never external, and sorts the rest.
func merged(prefixes []netip.Prefix) (rest []netip.Prefix) {
	all := append(detect.Local(), prefixes...)
	for i, p := range all[len(all)-len(prefixes):] {
		before := all[:len(all)-len(prefixes)+i]
		covers := func(other netip.Prefix) bool { return other.Contains(p.Addr()) && other.Bits() < p.Bits() }
		if !slices.Contains(before, p) && !slices.ContainsFunc(all, covers) {
			rest = append(rest, p)
		}
	}
	slices.SortFunc(rest, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	return rest
}

// texts writes prefixes, those of one address as that, and not more than people read.
func texts(prefixes []netip.Prefix) (list []string) {
	const most = 40
	for _, p := range prefixes[:min(most, len(prefixes))] {
		if p.IsSingleIP() {
			list = append(list, p.Addr().String())
		} else {
			list = append(list, p.String())
		}
	}
	if more := len(prefixes) - most; more > 0 {
		list = append(list, fmt.Sprintf("%d more", more))
	}
	return list
}
