package blocklist

import (
	"fmt"
	"math/bits"
	"unsafe"

	"golang.org/x/sys/unix"

	"bpfnet/bpf"
	"bpfnet/internal/datapath"
)

// How many words the filters have; see headers/blocklist.h.
const (
	filter4Words = 1 << 18 // a bit for each /24
	lengths4     = 1 << 16 // a word for each /16
	filter6Words = 1 << 20
	coarse6Words = bpf.CoarseHashed + 1<<10
)

// fewSubnets is up to how many /64s of a prefix, or /48s, have bits of their own
// set; more take the whole word, of which they would set most bits anyway.
const fewSubnets = 16

// Filters are the bits in front of the lists: where no bit is set, no entry can
// match. They are the programs' own memory, or a copy to compare that with.
type Filters struct {
	four    []uint64 // bit (address >> 8) & 63 of word address >> 14
	lengths []uint64 // bit n of word address >> 16: an entry of length n is there
	six     []uint64 // words by the hash of the /48, bits by that of the /64
	coarse  []uint64 // the same of the /32 and the /48, then a bit for each /16

	mapped [][]byte
}

// NewFilters returns filters in which no bit is set.
func NewFilters() *Filters {
	return &Filters{
		four: make([]uint64, filter4Words), lengths: make([]uint64, lengths4),
		six: make([]uint64, filter6Words), coarse: make([]uint64, coarse6Words),
	}
}

// openFilters maps the programs' filters into memory; Close when done.
func openFilters(shared *datapath.Shared) (*Filters, error) {
	return openFiltersOf(shared, func(bool) bool { return true })
}

// openFiltersOf maps those of some families alone, which is faster.
func openFiltersOf(shared *datapath.Shared, wanted func(six bool) bool) (*Filters, error) {
	f := &Filters{}
	for _, m := range []struct {
		name  string
		six   bool
		words int
		to    *[]uint64
	}{
		{"filters4", false, filter4Words, &f.four}, {"lengths4", false, lengths4, &f.lengths},
		{"filters6", true, filter6Words, &f.six}, {"coarse_filters6", true, coarse6Words, &f.coarse},
	} {
		if !wanted(m.six) {
			continue
		}
		memory, err := unix.Mmap(shared.Map(m.name).FD(), 0, m.words*8, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("map %s into memory: %w", m.name, err)
		}
		f.mapped = append(f.mapped, memory)
		*m.to = unsafe.Slice((*uint64)(unsafe.Pointer(&memory[0])), m.words)
	}
	return f, nil
}

// Close gives the memory of openFilters back.
func (f *Filters) Close() {
	for _, memory := range f.mapped {
		_ = unix.Munmap(memory)
	}
}

// all returns the words of all filters, in one order.
func (f *Filters) all() [][]uint64 { return [][]uint64{f.four, f.lengths, f.six, f.coarse} }

// Set makes f equal to exact, word by word.
func (f *Filters) Set(exact *Filters) {
	from := exact.all()
	for i, words := range f.all() {
		for j, word := range from[i] {
			if words[j] != word {
				words[j] = word
			}
		}
	}
}

// add sets the bits of a prefix. Entries of the allow list set none but those of
// their length: they are looked for only where another list matches.
func (f *Filters) add(p prefix, allow bool) {
	if p.six {
		if !allow {
			f.add6(p.high, int(p.length))
		}
		return
	}
	first := uint32(p.high >> 32)
	last := first | ^uint32(0)>>p.length
	if p.length == 0 {
		last = ^uint32(0)
	}
	for word := first >> 16; word <= last>>16; word++ {
		f.lengths[word] |= 1 << p.length
	}
	if !allow {
		setBits(f.four, uint64(first>>8), uint64(last>>8))
	}
}

// setBits sets the bits from first to last.
func setBits(words []uint64, first, last uint64) {
	for at := first; at <= last; {
		end := min(at|63, last)
		words[at/64] |= ^uint64(0) >> (63 - (end - at)) << (at & 63)
		at = end + 1
	}
}

func (f *Filters) add6(high uint64, length int) {
	switch {
	case length >= 48:
		word := &f.six[hash(high>>16)>>44]
		*word |= subnetBits(high, 64-length)
	case length >= 32:
		word := &f.coarse[hash(high>>32)>>46]
		*word |= subnetBits(high>>16, 48-length)
	default:
		first := high >> 48
		setBits(f.coarse[bpf.CoarseHashed:], first, first|(1<<max(16-length, 0)-1))
	}
}

// subnetBits are the bits of the subnets from first on, of which there are 2 to
// the power of free.
func subnetBits(first uint64, free int) (word uint64) {
	if free > bits.Len(fewSubnets-1) {
		return ^uint64(0)
	}
	for n := range uint64(1) << max(free, 0) {
		word |= 1 << (hash(first+n) >> 58)
	}
	return word
}

func hash(value uint64) uint64 { return value * bpf.HashMultiplier }
