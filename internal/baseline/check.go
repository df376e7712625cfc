package baseline

import (
	"cmp"
	"math"
	"slices"
	"time"

	"bpfnet/internal/detect"
	"bpfnet/internal/peers"
	"bpfnet/internal/traffic"
)

// Reason is how an endpoint deviates.
type Reason string

// The reasons.
const (
	Volume  Reason = "volume"   // it moves much more than is usual
	Peers   Reason = "peers"    // it contacts whom it never has
	Ports   Reason = "ports"    // it contacts ports that it never has
	Unknown Reason = "endpoint" // the baseline doesn't know it
)

// How many windows without a deviation end an episode: of volumes, and of the rest,
// which may come at longer intervals.
const (
	calmWindows  = 2
	quietWindows = 60
)

// easing is the part of what begins an episode that doesn't end it.
const easing = 0.8

// Bounds of what is kept of an instance and of what is told of it.
const (
	mostNews    = 4096
	mostSample  = 10
	mostUnknown = 1 << 16 // endpoints, besides
)

// Finding is that an endpoint deviates, or that this is over. Its episode starts when
// the first window that deviates begins, and ends when the last one does; but for
// volumes its amount is how many there are of what is new, and there is no threshold.
type Finding struct {
	Rule    Rule
	Reason  Reason
	Name    string // of the endpoint in the baseline
	Window  time.Duration
	Counted bool // traffic was: Lost is of that; else of peers and connections
	detect.Episode
	*Deviation // of a volume
	*News      // of anything else
}

// Deviation is how a volume differs from what is usual.
type Deviation struct {
	Metric    Metric
	Direction detect.Direction
	Score     float64 // of the amount
	Usual     Usual
	Windows   uint64 // that this is of
	Basis     Basis
	Hour      string

	metric int
}

// News is what the baseline doesn't have.
type News struct {
	Items  []string // all that were new in the first window
	Sample []string // ports and peers of some
	Known  int      // how many the baseline has
}

// Check notices what deviates from a baseline.
type Check struct {
	rule     Rule
	window   time.Duration
	known    map[string]*known
	meter    *meter
	contacts *contacts
	usual    map[string]*hourly
	volumes  map[direction]*loud
	news     map[source]*news
	strange  map[string]bool // endpoints that the baseline doesn't have
	cold     map[string]bool // those of which too little is known, in the last window
	closed   struct{ pods, peers int }
	seen     struct{ pods, peers bool }
}

// hourly is what is usual for an endpoint in the hour of the last window.
type hourly struct {
	hour int
	expected
	ok bool
}

// direction is what volumes are told apart by.
type direction struct {
	instance
	detect.Direction
}

// loud is an episode of a volume.
type loud struct {
	Finding
	calm int       // windows since then
	last time.Time // the end of the last window that deviated
}

// source is what has news of its own.
type source struct {
	instance
	Reason
}

// news are the episodes of what the baseline doesn't have.
type news struct {
	of       map[string]*strange
	episodes []*strange
}

type strange struct {
	Finding
	last time.Time // the end of the last window that had one of its items
}

// NewCheck compares samples with a document that has passed Read.
func NewCheck(d Document, r Rule) *Check {
	size := time.Duration(d.WindowSeconds) * time.Second
	return &Check{
		rule: r, window: size, known: d.known(), meter: newMeter(size), contacts: newContacts(size), usual: map[string]*hourly{},
		volumes: map[direction]*loud{}, news: map[source]*news{}, strange: map[string]bool{}, cold: map[string]bool{},
	}
}

// Pods takes the next sample of traffic and returns what deviates, by window and
// endpoint. What passed before the first one counts for nothing.
func (c *Check) Pods(doc traffic.Document) (found []Finding) {
	c.seen.pods = true
	for _, w := range c.meter.step(doc) {
		found = append(found, c.volume(w)...)
		c.closed.pods++
	}
	full := c.meter.mapFull
	for i := range found {
		found[i].Lost, found[i].Counted = full, true
	}
	return found
}

// Peers takes the next sample of peers.
func (c *Check) Peers(doc peers.Document) (found []Finding) {
	c.seen.peers = true
	for _, w := range c.contacts.step(doc, false) {
		for i := range w.all {
			found = append(found, c.meet(&w.all[i], w.begin, w.end)...)
		}
		found = append(found, c.quieten(w.end, Peers, Ports, Unknown)...)
		c.closed.peers++
	}
	for i := range found {
		found[i].Lost = c.contacts.lost
	}
	return found
}

// volume judges a window of traffic.
func (c *Check) volume(w window) (found []Finding) {
	there := make(map[instance]*volume, len(w.volumes))
	clear(c.cold)
	for i := range w.volumes {
		v := &w.volumes[i]
		there[v.instance] = v
		k := c.known[v.name]
		if k == nil {
			found = append(found, c.unknown(v.instance, v.seen, v.amounts == (amounts{}), w.begin, w.end)...)
			continue
		}
		usual := c.usually(v.name, k, w.begin)
		if !usual.ok {
			c.cold[v.name] = true
			continue
		}
		for _, d := range []detect.Direction{detect.Transmit, detect.Receive} {
			if f, ok := c.loud(v, d, usual.expected, w); ok {
				found = append(found, f)
			}
		}
	}
	found = append(found, c.gone(there)...)
	return append(found, c.quieten(w.end, Unknown)...)
}

func (c *Check) usually(name string, k *known, at time.Time) *hourly {
	hour := hourOf(at)
	h := c.usual[name]
	if h == nil || h.hour != hour {
		h = &hourly{hour: hour}
		h.expected, h.ok = k.expect(hour)
		c.usual[name] = h
	}
	return h
}

// loud begins or ends an episode of what an instance moves in one direction.
func (c *Check) loud(v *volume, d detect.Direction, usual expected, w window) (Finding, bool) {
	id := direction{v.instance, d}
	episode := c.volumes[id]
	if episode == nil {
		deviation := highest(v, d, usual, c.rule.Score, 1)
		if deviation == nil {
			return Finding{}, false
		}
		deviation.Hour = hourName(hourOf(w.begin))
		f := c.begin(Volume, v.instance, v.seen, w.begin)
		f.Deviation, f.Amount, f.Peak = deviation, v.amounts[deviation.metric], v.amounts[deviation.metric]
		f.Threshold = deviation.Usual.threshold(c.rule.Score, metrics[deviation.metric].least)
		c.volumes[id] = &loud{Finding: f, last: w.end}
		return f, true
	}
	episode.Source, episode.Sources = v.who, v.places
	episode.Peak = max(episode.Peak, v.amounts[episode.metric])
	if highest(v, d, usual, easing*c.rule.Score, easing) != nil {
		episode.calm, episode.last = 0, w.end
		return Finding{}, false
	}
	return c.calm(id, episode, v, usual, detect.Below)
}

// begin is what all findings have.
func (c *Check) begin(reason Reason, id instance, s seen, at time.Time) Finding {
	return Finding{
		Rule: c.rule, Reason: reason, Name: id.name, Window: c.window,
		Episode: detect.Episode{Kind: id.kind, Source: s.who, Sources: s.places, Point: s.point, Started: at},
	}
}

// highest is the volume of a direction that deviates most, nil if none does: it has the
// score, and more than so much of the most that there ever was.
func highest(v *volume, d detect.Direction, usual expected, score, part float64) (highest *Deviation) {
	for i, m := range metrics {
		if directionOf(i) != d {
			continue
		}
		x, u := v.amounts[i], *m.of(&usual.Cell)
		s := u.score(x, m.least)
		if s >= score && float64(x) > part*float64(u.Most) && (highest == nil || tenth(s) > highest.Score) {
			highest = &Deviation{metric: i, Metric: m.Metric, Direction: d, Score: tenth(s), Usual: u, Windows: usual.Windows, Basis: usual.Basis}
		}
	}
	return highest
}

func directionOf(metric int) detect.Direction {
	if metric < len(metrics)/2 {
		return detect.Transmit
	}
	return detect.Receive
}

// tenth rounds a score.
func tenth(score float64) float64 { return math.Round(score*10) / 10 }

// calm counts a window without a deviation; the last one that it takes ends the episode.
func (c *Check) calm(id direction, episode *loud, v *volume, usual expected, by detect.EndedBy) (Finding, bool) {
	if episode.calm++; episode.calm < calmWindows {
		return Finding{}, false
	}
	delete(c.volumes, id)
	f := episode.Finding
	deviation := *f.Deviation
	f.Deviation = &deviation
	f.Ended, f.EndedBy = episode.last, by
	f.Amount, deviation.Score = 0, 0
	if m := metrics[deviation.metric]; v != nil {
		f.Amount = v.amounts[deviation.metric]
		deviation.Score = tenth(m.of(&usual.Cell).score(f.Amount, m.least))
	}
	return f, true
}

// gone counts windows of instances that aren't there any more, which move nothing.
func (c *Check) gone(there map[instance]*volume) (found []Finding) {
	var ids []direction
	for id := range c.volumes {
		if there[id.instance] == nil {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, func(a, b direction) int { return cmp.Or(a.compare(b.instance), cmp.Compare(b.Direction, a.Direction)) })
	for _, id := range ids {
		if f, ok := c.calm(id, c.volumes[id], nil, expected{}, detect.Gone); ok {
			found = append(found, f)
		}
	}
	return found
}

// unknown tells of an endpoint that does something, once.
func (c *Check) unknown(id instance, where seen, idle bool, begin, end time.Time) []Finding {
	if len(c.strange) < mostEndpoints {
		c.strange[id.name] = true
	}
	if !c.rule.Unknown || idle {
		return nil
	}
	f := c.begin(Unknown, id, where, begin)
	id.id = "" // of the endpoint, whichever Pod it is
	if len(c.news) >= mostUnknown && c.news[source{id, Unknown}] == nil {
		c.contacts.lost++
		return nil
	}
	return c.tell(source{id, Unknown}, f, []string{id.name}, nil, len(c.known), end)
}

// meet judges whom an instance has contacted.
func (c *Check) meet(m *meeting, begin, end time.Time) (found []Finding) {
	k := c.known[m.name]
	if k == nil {
		return c.unknown(m.instance, m.seen, len(m.remotes) == 0, begin, end)
	}
	if k.peers != nil {
		items, sample := unheard(m.remotes, func(r remote) (string, bool) { return r.address.String(), k.peers.contains(r.address) })
		f := c.begin(Peers, m.instance, m.seen, begin)
		found = append(found, c.tell(source{m.instance, Peers}, f, items, sample, len(k.peers), end)...)
	}
	if k.ports != nil {
		items, sample := unheard(m.remotes, func(r remote) (string, bool) { return r.port, k.ports.contains(r.port) })
		f := c.begin(Ports, m.instance, m.seen, begin)
		found = append(found, c.tell(source{m.instance, Ports}, f, items, sample, len(k.ports), end)...)
	}
	return found
}

// unheard returns items that aren't known, each once, and what was contacted of them.
func unheard(remotes []remote, of func(remote) (item string, known bool)) (items []string, sample map[string][]string) {
	sample = map[string][]string{}
	for _, r := range remotes {
		item, known := of(r)
		if known {
			continue
		}
		if sample[item] == nil {
			items = append(items, item)
		}
		if len(sample[item]) < mostSample {
			sample[item] = append(sample[item], r.port+" "+r.address.String())
		}
	}
	return items, sample
}

// tell begins one episode of all items that no episode has yet.
func (c *Check) tell(from source, f Finding, items []string, sample map[string][]string, known int, end time.Time) []Finding {
	if len(items) == 0 {
		return nil
	}
	n := c.news[from]
	if n == nil {
		n = &news{of: map[string]*strange{}}
		c.news[from] = n
	}
	var begun *strange
	for _, item := range items {
		if s := n.of[item]; s != nil {
			s.last, s.Source, s.Sources = end, f.Source, f.Sources
			continue
		}
		if begun == nil && len(n.of) < mostNews {
			f.News = &News{Known: known}
			begun = &strange{Finding: f}
			n.episodes = append(n.episodes, begun)
		}
		youngest := n.episodes[len(n.episodes)-1]
		youngest.last = end
		if begun == nil && len(n.of) >= mostNews {
			continue // it may have been counted in a window before
		}
		youngest.Amount++
		youngest.Peak++
		if len(n.of) < mostNews {
			n.of[item] = youngest
			youngest.Items = append(youngest.Items, item)
			youngest.Sample = append(youngest.Sample, sample[item]...)
			youngest.Sample = youngest.Sample[:min(len(youngest.Sample), mostSample)]
		}
	}
	if begun == nil {
		return nil
	}
	return []Finding{begun.Finding.copied()}
}

// copied is a finding that doesn't change any more.
func (f Finding) copied() Finding {
	n := *f.News
	f.News = &n
	return f
}

// quieten ends episodes that had none of their items for long.
func (c *Check) quieten(now time.Time, reasons ...Reason) (found []Finding) {
	var froms []source
	for from := range c.news {
		if slices.Contains(reasons, from.Reason) {
			froms = append(froms, from)
		}
	}
	slices.SortFunc(froms, func(a, b source) int { return cmp.Or(a.compare(b.instance), cmp.Compare(a.Reason, b.Reason)) })
	for _, from := range froms {
		n := c.news[from]
		n.episodes = slices.DeleteFunc(n.episodes, func(s *strange) bool {
			if now.Sub(s.last) < quietWindows*c.window {
				return false
			}
			f := s.Finding.copied()
			f.Ended, f.EndedBy = s.last, detect.Below
			found = append(found, f)
			for _, item := range s.Items {
				delete(n.of, item)
			}
			return true
		})
		if len(n.episodes) == 0 {
			delete(c.news, from)
		}
	}
	return found
}

// Ready says whether a window was judged as a whole of everything that there are
// samples of.
func (c *Check) Ready() bool {
	const first = 2 // the first one may have begun before the samples
	return (c.seen.pods || c.seen.peers) && (!c.seen.pods || c.closed.pods >= first) && (!c.seen.peers || c.closed.peers >= first)
}

// Firing is how many episodes are on.
func (c *Check) Firing() int {
	sum := len(c.volumes)
	for _, n := range c.news {
		sum += len(n.episodes)
	}
	return sum
}

// Strangers is how many endpoints the baseline doesn't have.
func (c *Check) Strangers() int { return len(c.strange) }

// Learning is of how many endpoints in the last window it wasn't known what is usual.
func (c *Check) Learning() int { return len(c.cold) }

// Lost is how many packets, and how many peers and connections, found no room since the
// first sample.
func (c *Check) Lost() (packets, contacts uint64) { return c.meter.mapFull, c.contacts.lost }

// TooFar returns the longest time between two samples of traffic, and the window, if
// nothing is known of windows in between.
func (c *Check) TooFar() (apart, window time.Duration, tell bool) {
	return c.meter.longest, c.window, c.meter.tooFar(c.meter.longest)
}
