package follow

import (
	"time"

	"bpfnet/internal/endpoint"
)

// question is asked again and again while its answer is needed, by one goroutine at a
// time: an engine that hangs holds nothing else up.
type question struct {
	answers chan answer
	asked   bool          // the answer is still to come
	due     time.Time     // of the next time
	pause   time.Duration // before the one after
	longest time.Duration
}

// answer is what Endpoints found.
type answer struct {
	endpoint.Listing
	err error
}

// shortest is after what time a question is asked again, each further time after twice
// as long, up to its longest.
const shortest = 25 * time.Millisecond

func newQuestion(longest time.Duration) question {
	return question{answers: make(chan answer, 1), pause: shortest, longest: longest}
}

// soon has the question asked at once, and often.
func (q *question) soon() { q.due, q.pause = time.Now(), shortest }

// next is after what time the question is due.
func (q *question) next() time.Duration {
	if q.asked {
		return q.longest
	}
	return time.Until(q.due)
}

// ask asks if that is due. An answer that isn't needed is asked for later.
func (q *question) ask(needed bool, find func() (endpoint.Listing, error)) {
	switch {
	case q.asked, time.Now().Before(q.due):
	case !needed:
		q.due = time.Now().Add(q.longest)
	default:
		q.asked = true
		q.due, q.pause = time.Now().Add(q.pause), min(q.longest, 2*q.pause)
		go func() {
			found, err := find()
			q.answers <- answer{found, err}
		}()
	}
}
