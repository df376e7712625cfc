package metrics

import (
	"context"

	"bpfnet/internal/blocklist"
)

// hits adds up how much the hits of entries grow. Entries take their hits along when
// they go, so that the sum of those that are there would fall.
type hits struct {
	last  map[blocklist.HitsID]counted
	lists map[list]counted
	read  bool // before: what an entry has that wasn't there then is growth
}

type list struct {
	name   string
	action blocklist.Action
}

type counted struct{ packets, bytes uint64 }

func newHits() *hits { return &hits{lists: map[list]counted{}} }

// read counts on. Lists that there aren't any more are forgotten.
func (h *hits) update(lists []blocklist.List, all []blocklist.ListHits) {
	sums, last := map[list]counted{}, make(map[blocklist.HitsID]counted, len(all))
	for _, l := range lists {
		key := list{l.Name, l.Action}
		sums[key] = h.lists[key]
	}
	for _, one := range all {
		now, before := counted{one.Packets, one.Bytes}, h.last[one.ID]
		last[one.ID] = now
		if now.packets < before.packets {
			before = counted{}
		}
		key := list{one.List, one.Action}
		if sum, ok := sums[key]; ok && h.read {
			sums[key] = counted{sum.packets + now.packets - before.packets, sum.bytes + now.bytes - before.bytes}
		}
	}
	h.lists, h.last, h.read = sums, last, true
}

// outcomes are the counters of packets that became one thing each.
var outcomes = []string{"dropped", "alerted", "allowed", "non_ip", "truncated", "too_deep"}

// losses are the counters of what found no room, with their stage.
var losses = map[string]string{"hits_full": "hits", "events_lost": "block_events"}

// sharedMaps is what drops and losses of the lists are counted under: programs share
// the counters.
const sharedMaps = "blocklist"

func (e *Exporter) readBlocklist(ctx context.Context, s *snapshot) error {
	api := e.source.Blocklist()
	overview, err := api.Overview(ctx)
	if err != nil {
		return err
	}
	var all []blocklist.ListHits
	if err := api.Hits(ctx, func(h blocklist.ListHits) { all = append(all, h) }); err != nil {
		return err
	}
	e.hits.update(overview.Lists, all)
	for _, l := range overview.Lists {
		s.add(blocklistEntries, float64(l.Entries), l.Name, string(l.Action))
	}
	for l, sum := range e.hits.lists {
		s.add(blocklistHits, float64(sum.packets), l.name, string(l.action))
		s.add(blocklistHitBytes, float64(sum.bytes), l.name, string(l.action))
	}
	for _, outcome := range outcomes {
		s.add(blocklistPackets, float64(overview.Packets[outcome].Packets), outcome)
	}
	writeLosses(s, overview)
	s.add(packetDrops, float64(overview.Packets["dropped"].Packets), sharedMaps, "listed")
	return nil
}

func writeLosses(s *snapshot, overview blocklist.Overview) {
	for row, stage := range losses {
		s.add(lostEvents, float64(overview.Packets[row].Packets), sharedMaps, stage)
	}
}
