package detect

import (
	"time"

	"bpfnet/internal/peers"
)

// Grace is how long an attempt may stay without an answer until it has failed: long
// enough for two packets that get lost and are sent again.
const Grace = 5 * time.Second

// mostAttempts is how many pairs of an endpoint and a peer's port may have attempts
// that wait for an answer.
const mostAttempts = 1 << 17

// attempts are those that neither were answered nor have failed.
type attempts struct {
	waiting map[attemptsKey]*waiting
	queue   []batch // the oldest one first
	forgot  uint64  // attempts that found no room
}

type attemptsKey struct {
	at        place
	transport string
	to        PeerPort
}

// waiting are the attempts of an endpoint to reach a peer's port. Which of them an
// answer is for isn't known: it counts for the oldest one.
type waiting struct {
	attemptsKey
	made    uint64
	due     uint64 // those that are older than Grace
	done    uint64 // those that were answered or have failed
	batches int    // in the queue
}

// batch are attempts that one sample has told of.
type batch struct {
	at   clock
	made []made
}

type made struct {
	by *waiting
	n  uint64
}

func newAttempts() *attempts { return &attempts{waiting: map[attemptsKey]*waiting{}} }

// answers says whether attempts of a transport are answered if somebody is there.
func answers(transport string) bool { return transport == "tcp" || transport == "sctp" }

// of takes what a sample says of a peer's port, and returns how many attempts were
// refused.
func (a *attempts) of(key attemptsKey, row *peers.Peer, now clock) (refused uint64) {
	made, answered, refused := *row.NewAttempts, *row.NewAnswers, *row.NewRefusals
	if !answers(key.transport) {
		return refused
	}
	w := a.waiting[key]
	if w == nil {
		// What was refused that isn't waited for was made before the first sample, or has
		// failed already.
		if made <= plus(answered, refused) {
			return min(refused, made)
		}
		if len(a.waiting) >= mostAttempts {
			a.forgot = plus(a.forgot, made)
			return min(refused, made)
		}
		w = &waiting{attemptsKey: key}
		a.waiting[key] = w
	}
	if made > 0 {
		w.made = plus(w.made, made)
		a.enqueue(w, made, now)
	}
	w.done += min(answered, w.made-w.done)
	refused = min(refused, w.made-w.done)
	w.done += refused
	return refused
}

func (a *attempts) enqueue(w *waiting, n uint64, now clock) {
	if last := len(a.queue) - 1; last < 0 || a.queue[last].at < now {
		a.queue = append(a.queue, batch{at: now})
	}
	newest := &a.queue[len(a.queue)-1]
	newest.made = append(newest.made, made{w, n})
	w.batches++
}

// step has attempts fail that have waited too long. If it isn't known what happened
// since the sample before, none of those that wait do.
func (a *attempts) step(now clock, known bool, fail func(at place, to PeerPort, n uint64)) {
	if !known {
		*a = attempts{waiting: map[attemptsKey]*waiting{}, forgot: a.forgot}
		return
	}
	for len(a.queue) > 0 && now-a.queue[0].at >= milliseconds(Grace) {
		for _, m := range a.queue[0].made {
			w := m.by
			w.due, w.batches = plus(w.due, m.n), w.batches-1
			if w.due > w.done {
				fail(w.at, w.to, w.due-w.done)
				w.done = w.due
			}
			if w.batches == 0 {
				delete(a.waiting, w.attemptsKey)
			}
		}
		a.queue = a.queue[1:]
	}
}
