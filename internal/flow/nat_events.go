package flow

import (
	"errors"
	"io/fs"
	"os"
)

// Bounds of the questions that events raise.
const (
	mostEventQuestions = 200     // of one Read, which are many a second; the latest events
	mostConnections    = 1 << 16 // whose translation is remembered until they end
)

// translatedEvents is an EventSource that says of the connections of another whom the
// peers' addresses were translated to.
type translatedEvents struct {
	EventSource
	nat   *translated
	known map[connection]*translation // of those that are open
}

// translateEvents has the events of a source tell of NAT. The strings are for people.
func translateEvents(source EventSource, kernel Kernel) (EventSource, []string) {
	nat, notes := newTranslated(kernel)
	if nat == nil {
		return source, notes
	}
	return &translatedEvents{source, nat, map[connection]*translation{}}, notes
}

// Read implements EventSource.
func (t *translatedEvents) Read(last bool) ([]Event, EventLoss, error) {
	events, loss, err := t.EventSource.Read(last)
	if err != nil || len(events) == 0 {
		return events, loss, err
	}
	if _, err := os.Stat(tracked); errors.Is(err, fs.ErrNotExist) {
		return events, loss, nil
	}
	if len(t.known) > mostConnections {
		clear(t.known)
	}
	asked, rows := t.unknown(events)
	t.nat.ask(asked, rows)
	settle(asked)
	for i := range events {
		e := &events[i]
		about := t.about(&e.Rows[0])
		for j := range e.Rows {
			e.Rows[j].NAT = about.to
		}
		if e.Kind != "opened" {
			delete(t.known, connectionOf(&e.Rows[0]))
		}
	}
	return events, loss, nil
}

// unknown returns the questions to ask, and the rows whose processes may lead to where.
func (t *translatedEvents) unknown(events []Event) (questions []*question, rows []Row) {
	for i := len(events) - 1; i >= 0 && len(questions) < mostEventQuestions; i-- {
		r := &events[i].Rows[0]
		about := t.about(r)
		if about.attempts >= mostAttempts {
			continue
		}
		about.attempts++
		asked, _ := r.tuple()
		questions = append(questions, &question{row: r, about: about, tuple: asked})
		rows = append(rows, events[i].Rows...)
	}
	return questions, rows
}

// about is what is known of a connection.
func (t *translatedEvents) about(r *Row) *translation {
	id := connectionOf(r)
	about := t.known[id]
	if about == nil {
		about = &translation{}
		if _, ok := r.tuple(); !ok {
			about.attempts = mostAttempts
		}
		t.known[id] = about
	}
	return about
}
