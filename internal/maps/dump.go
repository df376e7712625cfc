package maps

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"bpfnet/internal/codec"
	"bpfnet/internal/fault"
)

// Dump implements API.
func (s *Store) Dump(ctx context.Context, r DumpRequest, emit func(Row) error) (Dumped, error) {
	h, err := s.open(r.Map, true)
	if err != nil {
		return Dumped{}, err
	}
	defer h.Close()
	if err := h.readable("dump"); err != nil {
		return Dumped{}, err
	}
	match, err := matcher(r.Match)
	if err != nil {
		return Dumped{}, err
	}
	dumped := Dumped{Map: h.about, Notes: h.notes}
	var row Row
	err = h.walk(ctx, func(key, value []byte) error {
		row.Key = h.key.Append(row.Key[:0], key)
		if !match(key, row.Key) {
			return nil
		}
		row.Value, row.Sum = h.appendValue(row.Value[:0], value)
		if err := emit(row); err != nil {
			return err
		}
		dumped.Entries++
		if dumped.Entries == r.Limit {
			return errEnough
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return dumped, err
}

// matcher returns the test that DumpRequest.Match asks for.
func matcher(prefix string) (func(key, doc []byte) bool, error) {
	digits, isHex := strings.CutPrefix(prefix, "hex:")
	if prefix == "" {
		return func(_, _ []byte) bool { return true }, nil
	}
	if !isHex {
		return func(_, doc []byte) bool { return bytes.HasPrefix(codec.Text(doc), []byte(prefix)) }, nil
	}
	raw, err := hex.DecodeString(digits)
	if err != nil {
		return nil, fault.New(fault.ErrUsage, "match %q: it is not hexadecimal", prefix)
	}
	return func(key, _ []byte) bool { return bytes.HasPrefix(key, raw) }, nil
}

// Walk visits each entry of a map once, in as few calls as the kernel allows, an
// array's by their index. Values are as the kernel gives them: those of a
// per-CPU map are one after the other, each padded to 8 bytes. Both slices are
// overwritten by the next entry. It stops with the first error of visit, and
// returns that.
func Walk(ctx context.Context, m *ebpf.Map, visit func(key, value []byte) error) error {
	h, err := newBytes(m)
	if err != nil {
		return err
	}
	h.about.Ref = m.String()
	return h.walk(ctx, visit)
}

// visitor gets the bytes of an entry, which are overwritten by the next.
type visitor func(key, value []byte) error

// walk visits each entry once, in the kernel's order and in constant memory.
func (h *handle) walk(ctx context.Context, visit visitor) error {
	if h.Type() == ebpf.LPMTrie {
		visit = onlyForward(visit)
	}
	if h.kind.batch {
		err := h.walkBatches(ctx, h.firstBatch(), visit)
		if !errors.Is(err, errNoBatch) {
			return err
		}
	}
	switch {
	case h.kind.indexed:
		return h.walkIndices(ctx, visit)
	case h.kind.hashed:
		return h.walkKeys(ctx, onlyOnce(visit))
	}
	return h.walkKeys(ctx, visit)
}

// onlyForward leaves out what an LPM trie shows again: when the prefix where
// the walk stands is deleted, the kernel starts from the first one.
func onlyForward(visit visitor) visitor {
	var last []byte
	return func(key, value []byte) error {
		if last != nil && !after(key, last) {
			return nil
		}
		last = append(last[:0], key...)
		return visit(key, value)
	}
}

// onlyOnce leaves out keys that were visited before. It remembers them all,
// but only kernels without batch lookup, before Linux 5.6, and rare map types
// need it.
func onlyOnce(visit visitor) visitor {
	seen := make(map[string]struct{})
	return func(key, value []byte) error {
		if _, again := seen[string(key)]; again {
			return nil
		}
		seen[string(key)] = struct{}{}
		return visit(key, value)
	}
}

var errNoBatch = errors.New("the kernel has no batch lookup for this type")

// batch is the buffers of batch lookups.
type batch struct {
	keys, values []byte
	count        int // entries that fit
}

// The memory that a batch takes to begin with, and the entries in it. Few large
// values are read at a time, which a bucket of a hash seldom has more of.
const (
	batchBytes   = 512 << 10
	batchEntries = 8192
	leastEntries = 4
)

func (h *handle) newBatch(count int) batch {
	return batch{make([]byte, count*int(h.KeySize())), make([]byte, count*h.stride*h.cpus), count}
}

// firstBatch has room for one entry more than a small map has: the kernel then
// says at once that there are no more.
func (h *handle) firstBatch() batch {
	count := batchBytes / (int(h.KeySize()) + h.stride*h.cpus)
	return h.newBatch(min(max(count, leastEntries), batchEntries, int(h.MaxEntries())+1))
}

// walkBatches visits what batch lookups return, at first as much as b holds. A
// hash is read by whole buckets and none is read twice, so no key comes again,
// whatever others change.
func (h *handle) walkBatches(ctx context.Context, b batch, visit visitor) error {
	var in []byte
	out := make([]byte, max(4, int(h.KeySize())))
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := lookupBatch(h.FD(), in, out, b.keys, b.values, b.count)
		switch {
		case errors.Is(err, unix.ENOSPC): // a bucket has more than fits
			b = h.newBatch(2 * b.count)
			continue
		case in == nil && lacksBatches(err):
			return errNoBatch
		case err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINTR):
			return h.explain("dump", err)
		}
		if err := h.visitBatch(b, n, visit); err != nil {
			return err
		}
		switch {
		case errors.Is(err, unix.ENOENT):
			return nil
		case err == nil || n > 0: // after EINTR too the place is behind what was read
			in = out
		}
	}
}

// lacksBatches says whether an error means that the kernel can't do it.
func lacksBatches(err error) bool {
	return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, enotsupp)
}

func (h *handle) visitBatch(b batch, n int, visit visitor) error {
	keySize, valueSize := int(h.KeySize()), h.stride*h.cpus
	for i := range n {
		if err := visit(b.keys[i*keySize:(i+1)*keySize], b.values[i*valueSize:(i+1)*valueSize]); err != nil {
			return err
		}
	}
	return nil
}

// walkIndices reads an array index by index, leaving out slots without a value.
func (h *handle) walkIndices(ctx context.Context, visit visitor) error {
	key := make([]byte, 4)
	value := make([]byte, h.stride*h.cpus)
	for i := range h.MaxEntries() {
		binary.NativeEndian.PutUint32(key, i)
		if err := h.visitKey(ctx, key, value, visit); err != nil {
			return err
		}
	}
	return nil
}

// walkKeys reads key by key.
func (h *handle) walkKeys(ctx context.Context, visit visitor) error {
	var key []byte
	next := make([]byte, h.KeySize())
	value := make([]byte, h.stride*h.cpus)
	for {
		err := element(unix.BPF_MAP_GET_NEXT_KEY, h.FD(), key, next, 0)
		if err != nil {
			if errors.Is(err, unix.ENOENT) {
				return nil
			}
			return h.explain("dump", err)
		}
		key = append(key[:0], next...)
		if err := h.visitKey(ctx, key, value, visit); err != nil {
			return err
		}
	}
}

func (h *handle) visitKey(ctx context.Context, key, value []byte, visit visitor) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	err := element(unix.BPF_MAP_LOOKUP_ELEM, h.FD(), key, value, 0)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil // deleted meanwhile, or an empty slot
	case err != nil:
		return h.explain("dump", err)
	}
	return visit(key, value)
}

// Entries counts the entries of a map by reading them all. It returns nil for
// arrays, whose entries are always there, and for what can't be counted fast.
func Entries(m *ebpf.Map) *uint64 {
	h, err := newBytes(m)
	if err != nil || !h.kind.batch || h.kind.fixed {
		return nil
	}
	var count uint64
	err = h.walk(context.Background(), func(_, _ []byte) error {
		count++
		return nil
	})
	if err != nil {
		return nil
	}
	return &count
}
