package maps

import (
	"bytes"
	"hash/maphash"
)

// place is where in the input something stands: line and byte of the line, both
// from 1.
type place struct{ line, column uint32 }

// state is what is to be done with an entry of the input, or was.
type state byte

const (
	toAdd state = iota
	toUpdate
	unchanged
	added
	updated
	refused
)

// table holds the entries of an input, each key once, packed: a million small
// ones take tens of megabytes.
type table struct {
	keySize, valueSize int
	chunks             []*chunk
	count              int
	index              []uint32 // a hash table of numbers of entries, from 1; its length is a power of two
	seed               maphash.Seed
}

// chunkEntries are in one chunk, so that growing copies nothing.
const chunkEntries = 4096

type chunk struct {
	keys, values []byte
	places       [chunkEntries]place
	states       [chunkEntries]state
}

func newTable(keySize, valueSize int) *table {
	return &table{keySize: keySize, valueSize: valueSize, index: make([]uint32, 1024), seed: maphash.MakeSeed()}
}

func (t *table) key(i int) []byte {
	at := i % chunkEntries * t.keySize
	return t.chunks[i/chunkEntries].keys[at : at+t.keySize]
}

func (t *table) value(i int) []byte {
	at := i % chunkEntries * t.valueSize
	return t.chunks[i/chunkEntries].values[at : at+t.valueSize]
}

func (t *table) place(i int) place { return t.chunks[i/chunkEntries].places[i%chunkEntries] }

func (t *table) state(i int) state { return t.chunks[i/chunkEntries].states[i%chunkEntries] }

func (t *table) setState(i int, s state) { t.chunks[i/chunkEntries].states[i%chunkEntries] = s }

// find returns the number of the entry with this key, -1 when there is none.
func (t *table) find(key []byte) int { return int(t.index[t.slot(key)]) - 1 }

// slot is where in the index a key is, or has to go.
func (t *table) slot(key []byte) uint64 {
	mask := uint64(len(t.index) - 1)
	slot := maphash.Bytes(t.seed, key) & mask
	for t.index[slot] != 0 && !bytes.Equal(t.key(int(t.index[slot])-1), key) {
		slot = (slot + 1) & mask
	}
	return slot
}

// add appends an entry whose key isn't there yet.
func (t *table) add(key, value []byte, at place) {
	if 2*(t.count+1) > len(t.index) {
		t.grow()
	}
	i := t.count
	if i%chunkEntries == 0 {
		t.chunks = append(t.chunks, &chunk{})
	}
	c := t.chunks[i/chunkEntries]
	c.keys = append(c.keys, key...)
	c.values = append(c.values, value...)
	c.places[i%chunkEntries] = at
	t.count++
	t.index[t.slot(key)] = uint32(t.count)
}

func (t *table) grow() {
	t.index = make([]uint32, 2*len(t.index))
	for i := range t.count {
		t.index[t.slot(t.key(i))] = uint32(i + 1)
	}
}
