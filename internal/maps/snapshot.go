package maps

import (
	"bytes"
	"hash/maphash"
)

// Snapshot remembers the entries of a map for the next pass over it: packed,
// and with an index of 4 bytes a place. A million entries take little more than
// their keys and values.
type Snapshot struct {
	keySize, valueSize int
	perChunk           int
	chunks             [][]byte // records of a key, a value and the pass that saw it last
	count              int
	index              []uint32 // by the key's hash, open addressing: record and 1; 0 is free
	seed               maphash.Seed
	pass               byte
}

// chunkBytes is what records are allocated by: growing copies nothing.
const chunkBytes = 1 << 20

// NewSnapshot returns one of no entries, whose keys and values have these sizes in
// bytes.
func NewSnapshot(keySize, valueSize int) *Snapshot {
	return &Snapshot{
		keySize: keySize, valueSize: valueSize, perChunk: max(1, chunkBytes/(keySize+valueSize+1)),
		index: make([]uint32, 1024), seed: maphash.MakeSeed(),
	}
}

func (s *Snapshot) record(i int) []byte {
	size := s.keySize + s.valueSize + 1
	at := i % s.perChunk * size
	return s.chunks[i/s.perChunk][at : at+size]
}

func (s *Snapshot) key(i int) []byte   { return s.record(i)[:s.keySize] }
func (s *Snapshot) value(i int) []byte { return s.record(i)[s.keySize : s.keySize+s.valueSize] }

// place returns where in the index a key is, or belongs.
func (s *Snapshot) place(key []byte) int {
	mask := len(s.index) - 1
	at := int(maphash.Bytes(s.seed, key)) & mask
	for s.index[at] != 0 && !bytes.Equal(s.key(int(s.index[at]-1)), key) {
		at = (at + 1) & mask
	}
	return at
}

// See notes that this pass met an entry, and calls visit with the value of the
// pass before, nil for a key that it hasn't met.
func (s *Snapshot) See(key, value []byte, visit func(before []byte)) {
	at := s.place(key)
	if s.index[at] == 0 {
		visit(nil)
		s.index[at] = uint32(s.add(key, value) + 1)
		s.makeRoom()
		return
	}
	i := int(s.index[at] - 1)
	if before := s.value(i); !bytes.Equal(before, value) {
		visit(before)
		copy(before, value)
	}
	s.mark(i)
}

func (s *Snapshot) mark(i int) { s.record(i)[s.keySize+s.valueSize] = s.pass }

func (s *Snapshot) add(key, value []byte) int {
	i := s.count
	s.count++
	if i/s.perChunk == len(s.chunks) {
		s.chunks = append(s.chunks, make([]byte, s.perChunk*(s.keySize+s.valueSize+1)))
	}
	copy(s.key(i), key)
	copy(s.value(i), value)
	s.mark(i)
	return i
}

// makeRoom keeps a quarter of the index free.
func (s *Snapshot) makeRoom() {
	if 4*s.count > 3*len(s.index) {
		s.index = make([]uint32, 2*len(s.index))
		s.reindex()
	}
}

func (s *Snapshot) reindex() {
	clear(s.index)
	for i := range s.count {
		s.index[s.place(s.key(i))] = uint32(i + 1)
	}
}

// Sweep ends a pass: it forgets the entries that the pass didn't meet, after
// calling gone with each.
func (s *Snapshot) Sweep(gone func(key, value []byte)) {
	kept := 0
	for i := range s.count {
		r := s.record(i)
		if r[len(r)-1] != s.pass {
			gone(s.key(i), s.value(i))
			continue
		}
		if kept < i {
			copy(s.record(kept), r)
		}
		kept++
	}
	if kept < s.count {
		s.count = kept
		s.chunks = s.chunks[:(kept+s.perChunk-1)/s.perChunk]
		s.reindex()
	}
	s.pass++
}
