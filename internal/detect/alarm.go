package detect

import "time"

// alarm is whether an endpoint is at a rule's threshold.
type alarm struct {
	reached *moment  // since when it has been there; nil: it isn't, or an episode is on
	episode *Episode // nil: none is on
	calm    *moment  // since when there has been less than what ends it; nil: there is more
}

// moment is a sample's time, on both clocks.
type moment struct {
	at   clock
	time time.Time
}

func (b *book[S]) moment() *moment { return &moment{b.now, b.last.time} }

// raise begins an episode when the threshold is reached, and was for as long as the
// rule wants.
func (b *book[S]) raise(rule int, e *endpoint[S], amount, threshold uint64) (Episode, bool) {
	a, t := &e.alarms[rule], b.timings[rule]
	if amount < threshold {
		a.reached = nil
		return Episode{}, false
	}
	if a.reached == nil || tooFar(b.now-b.before, milliseconds(t.Window)) {
		a.reached = b.moment()
	}
	if b.now-a.reached.at < milliseconds(t.Lasting) {
		return Episode{}, false
	}
	ep := Episode{
		Kind: e.kind, Source: e.source, Sources: e.places, Point: b.last.point, Started: a.reached.time,
		Amount: amount, Peak: amount, Threshold: threshold, Lost: b.lost,
	}
	*a = alarm{episode: &ep}
	return ep, true
}

// end ends an episode when there has been less for a window.
func (b *book[S]) end(rule int, e *endpoint[S], amount, below uint64) (ep Episode, over bool) {
	a := &e.alarms[rule]
	a.episode.Peak = max(a.episode.Peak, amount)
	if amount >= below {
		a.calm = nil
		return ep, false
	}
	if a.calm == nil {
		a.calm = b.moment()
	}
	if b.now-a.calm.at < milliseconds(b.timings[rule].Window) {
		return ep, false
	}
	ep = *a.episode
	ep.Source, ep.Sources, ep.Amount, ep.Lost = e.source, e.places, amount, b.lost
	ep.Ended, ep.EndedBy = a.calm.time, Below
	if e.seen < b.now {
		ep.EndedBy = Gone
	}
	*a = alarm{}
	return ep, true
}
