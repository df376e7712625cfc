package maps

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"math"
	"slices"
	"strings"
	"time"

	"bpfnet/internal/codec"
	"bpfnet/internal/fault"
	samples "bpfnet/internal/sample"
)

// Watcher is the part of API that shows how a map changes.
type Watcher interface {
	// Watch returns a sampler, which has to be closed. ErrUsage says that the
	// type of the map has no such field to sort by.
	Watch(request WatchRequest) (Sampler, error)
}

// WatchRequest says what to watch.
type WatchRequest struct {
	Map   string
	Match string // as in a DumpRequest
	// Sort is a field, with "-" in front for descending: "change", which is how
	// much the numbers of the value grew or shrank in all, "key", or the path of
	// one of the numbers, which stands for how much that grew.
	Sort  string
	Limit int // so many changes at most
}

// DefaultWatchSort shows first what changed most.
const DefaultWatchSort = "-change"

// DefaultWatchLimit is a number of changes that people and programs cope with.
const DefaultWatchLimit = 1000

// Sampler takes samples of a map. It keeps the entries of the one before.
type Sampler interface {
	// Sample reads the map. The first sample has nothing to compare with, and
	// no changes.
	Sample(ctx context.Context) (Watched, error)
	Close() error
}

// WatchSchema names the document.
const WatchSchema = "bpfnet.map_watch/v1"

// Watched is the document of one sample.
type Watched struct {
	Schema          string        `json:"schema"`
	Time            time.Time     `json:"time"`
	IntervalSeconds *float64      `json:"interval_seconds"` // nil: no sample before, no changes
	Map             string        `json:"map"`
	MapID           uint32        `json:"map_id"`
	Entries         uint64        `json:"entries"`
	Added           uint64        `json:"added"`
	Removed         uint64        `json:"removed"`
	Changed         uint64        `json:"changed"` // entries with another value
	Changes         []EntryChange `json:"changes"` // the first of them all, in the order that was asked for
	Notes           []string      `json:"-"`
}

// EntryChange is an entry that was added, removed or has another value.
type EntryChange struct {
	Key       json.RawMessage `json:"key"`
	Value     json.RawMessage `json:"value"`      // nil: removed
	Previous  json.RawMessage `json:"previous"`   // nil: added
	PerSecond json.RawMessage `json:"per_second"` // growth of the numbers, of an added entry from zero; nil: removed, or no numbers
	Sum       json.RawMessage `json:"-"`          // as in Row
}

// watcher is a Sampler.
type watcher struct {
	store   *Store
	request WatchRequest
	h       *handle
	match   func(key, doc []byte) bool
	numbers []codec.Number
	compare func(a, b *change) int
	before  *Snapshot
	taken   time.Time // of before; zero: none
	keyText []byte
	scratch change
}

// change is an EntryChange as bytes.
type change struct {
	key, value, before []byte
	growth             []float64
	rank               float64 // by which it is sorted
}

// Watch implements API.
func (s *Store) Watch(r WatchRequest) (Sampler, error) {
	match, err := matcher(r.Match)
	if err != nil {
		return nil, err
	}
	w := &watcher{store: s, request: r, match: match}
	if err := w.open(); err != nil {
		return nil, err
	}
	return w, nil
}

func (w *watcher) open() error {
	h, err := w.store.open(w.request.Map, true)
	if err != nil {
		return err
	}
	w.h, w.numbers, w.before, w.taken = h, nil, NewSnapshot(int(h.KeySize()), h.stride*h.cpus), time.Time{}
	if h.kind.holds == "" && h.kind.target == "" && !h.kind.sockets { // else they are ids
		w.numbers = h.value.Numbers()
	}
	if err = h.readable("watch"); err == nil {
		w.compare, err = w.order()
	}
	if err != nil {
		h.Close()
	}
	return err
}

// follow opens the map again if another one is pinned in its place by now.
func (w *watcher) follow() error {
	if strings.HasPrefix(w.h.about.Ref, idPrefix) {
		return nil
	}
	path, err := w.store.path(w.h.about.Ref)
	if err != nil {
		return err
	}
	id, err := pinnedID(path)
	switch {
	case err != nil:
		return w.store.openError(w.h.about.Ref, path, err)
	case id == w.h.about.ID:
		return nil
	}
	w.h.Close()
	return w.open()
}

// Close implements Sampler.
func (w *watcher) Close() error { return w.h.Close() }

// Sample implements Sampler.
func (w *watcher) Sample(ctx context.Context) (Watched, error) {
	if err := w.follow(); err != nil {
		return Watched{}, err
	}
	now := time.Now()
	first := w.taken.IsZero()
	var elapsed time.Duration
	if !first {
		elapsed = now.Sub(w.taken)
	}
	doc := Watched{
		Schema: WatchSchema, Time: now.UTC().Truncate(time.Second), IntervalSeconds: samples.Interval(elapsed),
		Map: w.h.about.Ref, MapID: w.h.about.ID, Changes: []EntryChange{}, Notes: w.h.notes,
	}
	kept, err := w.pass(ctx, &doc, first)
	if err != nil {
		return Watched{}, err
	}
	w.taken = now
	for _, c := range kept {
		doc.Changes = append(doc.Changes, w.document(c, elapsed))
	}
	return doc, nil
}

// pass reads the map and compares it with the pass before.
func (w *watcher) pass(ctx context.Context, doc *Watched, first bool) ([]*change, error) {
	best := top{limit: w.request.Limit, compare: w.compare}
	note := func(count *uint64, key, value, before []byte) {
		if !first {
			*count++
			best.add(w.change(key, value, before))
		}
	}
	err := w.h.walk(ctx, func(key, value []byte) error {
		if w.request.Match != "" {
			w.keyText = w.h.key.Append(w.keyText[:0], key)
			if !w.match(key, w.keyText) {
				return nil
			}
		}
		doc.Entries++
		w.before.See(key, value, func(before []byte) {
			if before == nil {
				note(&doc.Added, key, value, nil)
				return
			}
			note(&doc.Changed, key, value, before)
		})
		return nil
	})
	if err != nil {
		return nil, err
	}
	w.before.Sweep(func(key, value []byte) { note(&doc.Removed, key, nil, value) })
	return best.sorted(), nil
}

// change is what happened to an entry. The next call overwrites it, and it
// borrows the bytes.
func (w *watcher) change(key, value, before []byte) *change {
	c := &w.scratch
	*c = change{key: key, value: value, before: before, growth: c.growth[:0]}
	if value == nil {
		return c
	}
	field := strings.TrimPrefix(w.request.Sort, "-")
	for _, n := range w.numbers {
		grown := n.Growth(before, value, w.h.stride)
		c.growth = append(c.growth, grown)
		switch field {
		case n.Path:
			c.rank = grown
		case "change":
			c.rank += math.Abs(grown)
		}
	}
	return c
}

// order returns the comparison that sorts as the request asks; equal ones follow
// in the order of their keys.
func (w *watcher) order() (func(a, b *change) int, error) {
	field, descending := strings.CutPrefix(w.request.Sort, "-")
	sign := 1
	if descending {
		sign = -1
	}
	byKey := func(a, b *change) int { return bytes.Compare(a.key, b.key) }
	if field == "key" {
		return func(a, b *change) int { return sign * byKey(a, b) }, nil
	}
	known := []string{"change", "key"}
	for _, n := range w.numbers {
		known = append(known, n.Path)
	}
	if field == "" || !slices.Contains(known, field) {
		known = slices.DeleteFunc(known, func(name string) bool { return name == "" })
		return nil, fault.New(fault.ErrUsage, "sort by %q: no such field", w.request.Sort).
			Hint("fields are %s; a - in front sorts descending", strings.Join(known[:min(len(known), 20)], ", "))
	}
	return func(a, b *change) int { return cmp.Or(sign*cmp.Compare(a.rank, b.rank), byKey(a, b)) }, nil
}

func (w *watcher) document(c *change, elapsed time.Duration) EntryChange {
	d := EntryChange{Key: w.h.keyJSON(c.key), Previous: w.h.valueJSON(c.before)}
	if c.value == nil {
		return d
	}
	doc, sum := w.h.appendValue(nil, c.value)
	d.Value, d.Sum = doc, sum
	if len(c.growth) > 0 {
		for i := range c.growth {
			c.growth[i] /= elapsed.Seconds()
		}
		d.PerSecond = w.h.value.AppendRates(nil, c.growth)
	}
	return d
}

// top keeps the first changes in an order, in memory for twice as many.
type top struct {
	limit   int
	compare func(a, b *change) int
	kept    []*change
	last    *change
}

func (t *top) add(c *change) {
	if t.last != nil && t.compare(t.last, c) < 0 {
		return
	}
	t.kept = append(t.kept, &change{bytes.Clone(c.key), bytes.Clone(c.value), bytes.Clone(c.before), slices.Clone(c.growth), c.rank})
	if len(t.kept)/2 >= t.limit {
		t.kept = t.sorted()
		t.last = t.kept[len(t.kept)-1]
	}
}

func (t *top) sorted() []*change {
	slices.SortFunc(t.kept, t.compare)
	return t.kept[:min(len(t.kept), t.limit)]
}
