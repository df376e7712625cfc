package baseline

import (
	"maps"
	"slices"
)

// DifferenceSchema names the documents that Diff makes.
const DifferenceSchema = "bpfnet.baseline_difference/v1"

// Difference is one thing that two baselines have differently.
type Difference struct {
	Schema   string   `json:"schema"`
	Endpoint string   `json:"endpoint"`
	Kind     string   `json:"kind"`   // "endpoint", "peer", "port" or "volume"
	Change   string   `json:"change"` // "added", "removed" or, of a volume, "more" or "less"
	Item     *string  `json:"item"`   // the peer or port; null: it is something else
	Hour     *string  `json:"hour"`   // null, as the rest: it isn't a volume
	Metric   *string  `json:"metric"`
	Before   *Usual   `json:"before"`
	After    *Usual   `json:"after"`
	Score    *float64 `json:"score"` // of the median that is after
}

// Diff compares two documents that have passed Read, by endpoint. Volumes differ when
// the later median has at least the score by what was usual, or the earlier one by what
// is, in hours of which both know enough.
func Diff(a, b Document, score float64) []Difference {
	all := []Difference{}
	before, after := a.known(), b.known()
	either := maps.Clone(before)
	maps.Copy(either, after)
	for _, name := range slices.Sorted(maps.Keys(either)) {
		x, y := before[name], after[name]
		switch {
		case y == nil:
			all = append(all, Difference{Endpoint: name, Kind: "endpoint", Change: "removed"})
		case x == nil:
			all = append(all, Difference{Endpoint: name, Kind: "endpoint", Change: "added"})
		default:
			if x.peers != nil && y.peers != nil {
				all = append(all, items(name, "peer", x.peers.list(), y.peers.list())...)
			}
			if x.ports != nil && y.ports != nil {
				all = append(all, items(name, "port", x.ports.list(), y.ports.list())...)
			}
			all = append(all, volumes(name, x, y, score)...)
		}
	}
	for i := range all {
		all[i].Schema = DifferenceSchema
	}
	return all
}

// items are those that only one of two lists has.
func items(endpoint, kind string, before, after []string) (all []Difference) {
	only := func(list, other []string, change string) {
		has := map[string]bool{}
		for _, item := range other {
			has[item] = true
		}
		for _, item := range list {
			if !has[item] {
				all = append(all, Difference{Endpoint: endpoint, Kind: kind, Change: change, Item: &item})
			}
		}
	}
	only(before, after, "removed")
	only(after, before, "added")
	return all
}

func volumes(endpoint string, before, after *known, score float64) (all []Difference) {
	for h := range hours {
		x, y := before.cells[h], after.cells[h]
		if x == nil || y == nil || min(x.Windows, y.Windows) < enough {
			continue
		}
		for _, m := range metrics {
			u, v := *m.of(x), *m.of(y)
			more, less := u.score(v.Median, m.least), v.score(u.Median, m.least)
			if max(more, less) < score {
				continue
			}
			change, metric, hour, distance := "more", string(m.Metric), hourName(h), tenth(more)
			if v.Median < u.Median {
				change = "less"
			}
			all = append(all, Difference{
				Endpoint: endpoint, Kind: "volume", Change: change, Hour: &hour, Metric: &metric, Before: &u, After: &v, Score: &distance,
			})
		}
	}
	return all
}
