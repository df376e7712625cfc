package maps

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"
)

// batchCount is how many entries are written in one call.
func (h *handle) batchCount() int {
	count := batchBytes / (int(h.KeySize()) + h.stride*h.cpus)
	return max(1, min(count, batchEntries))
}

// bulk writes or deletes many entries, by batches where the kernel has them.
type bulk struct {
	*handle
	noBatch bool
	put     func(key, value []byte) error // writes one entry
}

func (h *handle) bulk() *bulk {
	return &bulk{handle: h, put: func(key, value []byte) error { return h.put(key, value, unix.BPF_ANY) }}
}

// apply writes entries, or deletes them when values is nil, and tells each what
// became of every one of them, in their order.
func (b *bulk) apply(keys, values []byte, each func(i int, err error)) {
	count := len(keys) / int(b.KeySize())
	for at := 0; at < count; at++ {
		done, err := b.batch(keys, values, at, count)
		for range done {
			each(at, nil)
			at++
		}
		if at == count {
			return
		}
		oneErr := b.one(keys, values, at)
		each(at, oneErr)
		// What works alone but not in a batch tells that there are no batches.
		transient := errors.Is(err, unix.ENOMEM) || errors.Is(err, unix.EBUSY) || errors.Is(err, unix.ENOENT)
		b.noBatch = b.noBatch || done == 0 && oneErr == nil && !transient
	}
}

// batch writes or deletes the entries from at on, and returns how many it did.
func (b *bulk) batch(keys, values []byte, at, count int) (int, error) {
	if b.noBatch {
		return 0, nil
	}
	keys = keys[at*int(b.KeySize()):]
	if values != nil {
		values = values[at*b.stride*b.cpus:]
	}
	return writeBatch(b.FD(), keys, values, count-at)
}

func (b *bulk) one(keys, values []byte, at int) error {
	keySize, valueSize := int(b.KeySize()), b.stride*b.cpus
	key := keys[at*keySize : (at+1)*keySize]
	if values == nil {
		return element(unix.BPF_MAP_DELETE_ELEM, b.FD(), key, nil, 0)
	}
	return b.put(key, values[at*valueSize:(at+1)*valueSize])
}

// writeTable writes what differs, in the order of the input.
func (im *importer) writeTable(ctx context.Context) error {
	b := im.bulk()
	if im.kind.holds != "" || im.endsWithProgram() {
		b.noBatch, b.put = true, im.putObject
	}
	var keys, values []byte
	var numbers []int
	flush := func() error {
		b.apply(keys, values, func(i int, err error) { im.wrote(numbers[i], err) })
		keys, values, numbers = keys[:0], values[:0], numbers[:0]
		return cmp.Or(im.denied, ctx.Err())
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	most := im.batchCount()
	for i := range im.table.count {
		if s := im.table.state(i); s != toAdd && s != toUpdate {
			continue
		}
		keys = append(keys, im.table.key(i)...)
		values = append(values, im.table.value(i)...)
		numbers = append(numbers, i)
		if len(numbers) == most {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}

// wrote notes what became of entry i.
func (im *importer) wrote(i int, err error) {
	switch {
	case errors.Is(err, unix.EPERM):
		im.denied = im.explain("change", err) // the others will be too
	case err != nil:
		im.table.setState(i, refused)
		at := im.table.place(i)
		im.refuse(&at, im.table.key(i), im.refusal(err))
	case im.table.state(i) == toAdd:
		im.table.setState(i, added)
	default:
		im.table.setState(i, updated)
	}
}

// refuse notes that the kernel refused a change; at is nil for an entry that the
// input doesn't have.
func (im *importer) refuse(at *place, key []byte, err error) {
	im.done.Refused++
	if len(im.done.Errors) == refusedMost {
		return
	}
	entry := RefusedEntry{Key: im.keyJSON(key), Message: err.Error()}
	if at != nil {
		entry.Line, entry.Column = &at.line, &at.column
	}
	im.done.Errors = append(im.done.Errors, entry)
}

// refusal says why the kernel refused to write an entry.
func (h *handle) refusal(err error) error {
	if errors.Is(err, unix.E2BIG) || errors.Is(err, unix.ENOSPC) {
		return fmt.Errorf("the map is full: it holds %d entries", h.MaxEntries())
	}
	return h.explain("change", err)
}

// putObject writes an entry whose value is, or ends with, the id of a map or
// program.
func (im *importer) putObject(key, value []byte) error {
	v, release, err := im.openValue(value)
	if err != nil {
		return err
	}
	defer release()
	return im.handle.put(key, v.write, unix.BPF_ANY)
}

func (im *importer) openValue(value []byte) (newValue, func(), error) {
	if im.endsWithProgram() {
		return im.store.withProgram(im.handle, newValue{read: value, write: value})
	}
	return im.store.parseObject(im.handle, strconv.FormatUint(uint64(prefixLength(value)), 10))
}

// removeSurplus deletes what the input doesn't have.
func (im *importer) removeSurplus(ctx context.Context) error {
	size := len(im.key)
	return im.removeKeys(ctx, im.surplus, func(i int, err error) {
		if err != nil {
			im.refuse(nil, im.surplus[i*size:(i+1)*size], im.refusal(err))
			return
		}
		im.done.Deleted++
	})
}

// removeKeys deletes entries, or sets them to zero where they are always there,
// and tells each what became of them. A key that is gone already isn't told.
func (h *handle) removeKeys(ctx context.Context, keys []byte, each func(i int, err error)) error {
	b, most, size := h.bulk(), h.batchCount(), int(h.KeySize())
	var zeros []byte
	if h.kind.fixed {
		zeros = make([]byte, most*h.stride*h.cpus)
	}
	for first := 0; first*size < len(keys); first += most {
		if err := ctx.Err(); err != nil {
			return err
		}
		b.apply(keys[first*size:min((first+most)*size, len(keys))], zeros, func(i int, err error) {
			if !errors.Is(err, unix.ENOENT) {
				each(first+i, err)
			}
		})
	}
	return nil
}
