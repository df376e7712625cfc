package flow

import (
	"slices"

	"bpfnet/bpf"
)

// table has the rows of open sockets, which stay where they are from one sample to the
// next.
type table struct {
	rows  []Row
	about []about
	index map[place]int32 // of rows

	told place // the next row of the socket that is being told; no cookie: none is
}

// place is where a row is: the n-th of its socket.
type place struct {
	cookie uint64
	n      uint32
}

// about is what is known of a row beside it.
type about struct {
	place
	walk   uint32 // the last one that told it
	opened uint64 // of its socket, as the kernel has it
	first  bool   // as in use
}

// tell returns the row for what is told of a socket, all whose uses are told one after the
// other.
func (t *table) tell(from *bpf.FlowRecord, walk uint32) *Row {
	if from.Number == 0 {
		t.finish()
	}
	t.told = place{from.Cookie, from.Number}
	at, known := t.index[t.told]
	if !known {
		at = int32(len(t.rows))
		t.index[t.told] = at
		if len(t.rows) == cap(t.rows) { // append would leave more behind
			t.rows = slices.Grow(t.rows, max(64, len(t.rows)))
		}
		t.rows, t.about = append(t.rows, Row{}), append(t.about, about{})
	}
	t.about[at] = about{t.told, walk, from.Opened, from.First != 0}
	t.told.n++
	return &t.rows[at]
}

// known returns a row of which something is told; nil: it isn't there.
func (t *table) known(at place, walk uint32) *Row {
	t.finish()
	i, known := t.index[at]
	if !known {
		return nil
	}
	t.about[i].walk = walk
	return &t.rows[i]
}

// finish ends what is told of a socket. Rows that weren't told aren't any more.
func (t *table) finish() {
	if t.told.cookie != 0 {
		t.cut(t.told)
	}
	t.told = place{}
}

// cut removes the row at a place and those of the socket behind it.
func (t *table) cut(from place) {
	for ; ; from.n++ {
		at, known := t.index[from]
		if !known {
			return
		}
		last := len(t.rows) - 1
		t.rows[at], t.about[at] = t.rows[last], t.about[last]
		t.index[t.about[at].place] = at
		delete(t.index, from)
		t.rows[last] = Row{}
		t.rows, t.about = t.rows[:last], t.about[:last]
	}
}

// close removes the rows of a socket that has ended, unless it was opened again.
func (t *table) close(cookie, opened uint64) {
	if at, known := t.index[place{cookie: cookie}]; known && t.about[at].opened == opened {
		t.cut(place{cookie: cookie})
	}
}

// expire removes the rows that no walk has told since one.
func (t *table) expire(walk uint32) {
	for at := 0; at < len(t.rows); {
		if t.about[at].walk >= walk {
			at++
			continue
		}
		t.cut(t.about[at].place)
	}
}

// move gives the rows of a socket to another table.
func (t *table) move(cookie uint64, to *table) {
	for from := (place{cookie: cookie}); ; from.n++ {
		at, known := t.index[from]
		if !known {
			break
		}
		to.index[from] = int32(len(to.rows))
		to.rows, to.about = append(to.rows, t.rows[at]), append(to.about, t.about[at])
	}
	t.cut(place{cookie: cookie})
}
