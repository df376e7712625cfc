package bpftool

import (
	"errors"
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"

	"bpfnet/internal/fault"
	"bpfnet/internal/maps"
)

// entryPrinter writes the entries of a map as bpftool does: the bytes, and
// "formatted" when the map has BTF.
type entryPrinter struct {
	info       maps.RawInfo
	key, value printer // nil: no type
	buffer     []byte
}

// printable returns an open map with the printer of its entries, or what opening
// it failed with. Types that may not be read are left out, and noted.
func (k *Kernel) printable(r *maps.Raw, err error) (*maps.Raw, *entryPrinter, error) {
	if err != nil {
		return nil, nil, err
	}
	p, err := newEntryPrinter(r)
	if errors.Is(err, fault.ErrPermission) {
		k.mapNotes = append(k.mapNotes, fmt.Sprintf("%s: keys and values are bytes alone, without formatted", err))
		err = nil
	}
	if err != nil {
		r.Close()
		return nil, nil, err
	}
	return r, p, nil
}

// newEntryPrinter returns with an error from reading the types a printer that
// does without them.
func newEntryPrinter(r *maps.Raw) (*entryPrinter, error) {
	p := &entryPrinter{info: r.Info}
	key, value, err := r.Types()
	if err != nil || value == nil {
		return p, err // bpftool doesn't format keys alone
	}
	p.value = newPrinter(value, int(r.Info.ValueSize))
	if key != nil {
		p.key = newPrinter(key, int(r.Info.KeySize))
	}
	return p, nil
}

// entry returns the JSON of an entry, or of why the kernel doesn't give its
// value; nil for an empty slot of a map of maps or programs. The next call
// overwrites it.
func (p *entryPrinter) entry(key, value []byte, refused error) []byte {
	switch {
	case refused == nil:
		p.buffer = p.append(p.buffer[:0], key, value)
	case p.info.HoldsObjects && errors.Is(refused, unix.ENOENT):
		return nil
	default:
		p.buffer = appendRefused(p.buffer[:0], key, refused)
	}
	return p.buffer
}

func (p *entryPrinter) append(dst, key, value []byte) []byte {
	dst = append(dst, `{"key":`...)
	dst = appendBytes(dst, key)
	dst = p.appendValues(append(dst, ','), value, func(dst, b []byte) []byte {
		return appendBytes(dst, b[:p.info.ValueSize])
	})
	if p.value != nil {
		dst = append(dst, `,"formatted":{`...)
		if p.key != nil {
			dst = append(dst, `"key":`...)
			dst = append(p.key.append(dst, key), ',')
		}
		dst = append(p.appendValues(dst, value, p.value.append), '}')
	}
	return append(dst, '}')
}

// appendValues adds "value", or "values" with one for each CPU.
func (p *entryPrinter) appendValues(dst, value []byte, one func(dst, b []byte) []byte) []byte {
	if !p.info.PerCPU {
		return one(append(dst, `"value":`...), value)
	}
	dst = append(dst, `"values":[`...)
	for cpu := range p.info.CPUs {
		if cpu > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, `{"cpu":`...)
		dst = strconv.AppendInt(dst, int64(cpu), 10)
		dst = append(dst, `,"value":`...)
		dst = append(one(dst, value[cpu*p.info.Stride:]), '}')
	}
	return append(dst, ']')
}

// appendRefused adds the entry of a key whose value the kernel doesn't give.
func appendRefused(dst, key []byte, refused error) []byte {
	dst = appendBytes(append(dst, `{"key":`...), key)
	dst = append(dst, `,"value":{"error":`...)
	dst = appendString(dst, []byte(cMessage(refused)))
	return append(dst, "}}"...)
}

// cMessage is the text that the C library has for an error of the kernel.
func cMessage(err error) string {
	var errno unix.Errno
	if !errors.As(err, &errno) {
		return err.Error()
	}
	if unix.ErrnoName(errno) == "" {
		return "Unknown error " + strconv.Itoa(int(errno))
	}
	text := []byte(errno.Error())
	if text[0] >= 'a' && text[0] <= 'z' {
		text[0] -= 'a' - 'A'
	}
	return string(text)
}

// hexBytes has the JSON of each byte, `"0x0a"`.
var hexBytes = func() (all [256][6]byte) {
	const digits = "0123456789abcdef"
	for i := range all {
		all[i] = [6]byte{'"', '0', 'x', digits[i>>4], digits[i&15], '"'}
	}
	return all
}()

func appendBytes(dst, b []byte) []byte {
	dst = append(dst, '[')
	for i, c := range b {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, hexBytes[c][:]...)
	}
	return append(dst, ']')
}
