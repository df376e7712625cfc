package maps

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// nextIsExact says whether the kernel's walk goes on after a prefix only if that
// is there. Before Linux 6.13, and the fixes of December 2024 for older ones, it
// takes another one of the same length that stands in its place for it.
var nextIsExact = sync.OnceValue(func() bool {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.LPMTrie, KeySize: 5, ValueSize: 1, MaxEntries: 1, Flags: unix.BPF_F_NO_PREALLOC})
	if err != nil {
		return false
	}
	defer m.Close()
	there, other, next := append(word(8), 0), append(word(8), 0x80), make([]byte, 5)
	return element(unix.BPF_MAP_UPDATE_ELEM, m.FD(), there, []byte{0}, 0) == nil &&
		element(unix.BPF_MAP_GET_NEXT_KEY, m.FD(), other, next, 0) == nil
})

// hasPrefix says whether an LPM trie has exactly this prefix, which a lookup
// doesn't tell: that finds the longest that matches. The kernel's walk does: it
// goes on after a prefix that is there, but begins with the first one for a
// prefix that isn't, and no prefix is followed by the first.
func (h *handle) hasPrefix(key []byte) (bool, error) {
	if !nextIsExact() {
		longest, err := h.longest(key)
		return longest != nil && prefixLength(longest) == prefixLength(key), err
	}
	first, next := make([]byte, len(key)), make([]byte, len(key))
	if err := element(unix.BPF_MAP_GET_NEXT_KEY, h.FD(), nil, first, 0); err != nil {
		return false, h.walkEnd(err)
	}
	err := element(unix.BPF_MAP_GET_NEXT_KEY, h.FD(), key, next, 0)
	if errors.Is(err, unix.ENOENT) {
		return true, nil
	}
	return err == nil && !bytes.Equal(first, next), h.walkEnd(err)
}

// longest reads the whole trie for the longest prefix that the one in key lies
// in, or is; nil when there is none.
func (h *handle) longest(key []byte) (found []byte, err error) {
	err = h.walk(context.Background(), func(prefix, _ []byte) error {
		length := prefixLength(prefix)
		if length <= prefixLength(key) && differAt(prefix[4:], key[4:]) >= length && (found == nil || length > prefixLength(found)) {
			found = masked(bytes.Clone(prefix))
		}
		return nil
	})
	return found, err
}

// walkEnd is the error of a walk that reached its end: none.
func (h *handle) walkEnd(err error) error {
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return h.explain("read", err)
}

// stored returns the value that is stored under exactly this key, nil when
// there is none.
func (h *handle) stored(key []byte) ([]byte, error) {
	if h.Type() == ebpf.LPMTrie {
		if there, err := h.hasPrefix(key); err != nil || !there {
			return nil, err
		}
	}
	return h.lookup(key)
}

// match returns the longest prefix that the address in key lies in, and its
// value.
func (h *handle) match(key []byte) (prefix, value []byte, err error) {
	value, err = h.lookup(key)
	if err != nil || value == nil {
		return nil, nil, err
	}
	if !nextIsExact() {
		if prefix, err = h.longest(key); prefix == nil { // removed meanwhile
			value = nil
		}
		return prefix, value, err
	}
	prefix = bytes.Clone(key)
	for length := prefixLength(key); ; length-- {
		binary.NativeEndian.PutUint32(prefix, length)
		if there, err := h.hasPrefix(prefix); err != nil || there || length == 0 {
			return masked(prefix), value, err
		}
	}
}

// isAddress says that the text of an LPM key is an address without a length,
// for which the longest match is wanted.
func (h *handle) isAddress(text string) bool {
	return h.Type() == ebpf.LPMTrie && !strings.ContainsAny(text, "/{") && !strings.HasPrefix(text, "hex:")
}

func prefixLength(key []byte) uint32 { return binary.NativeEndian.Uint32(key) }

// checkPrefix refuses a length that no prefix of this size has.
func checkPrefix(key []byte) error {
	if length, most := prefixLength(key), uint32(8*(len(key)-4)); length > most {
		return fmt.Errorf("prefix length %d: it must be 0..%d", length, most)
	}
	return nil
}

// masked clears the bits of a prefix beyond its length.
func masked(key []byte) []byte {
	data := key[4:]
	for i := range data {
		if kept := int(prefixLength(key)) - 8*i; kept < 8 {
			data[i] &= ^byte(0xff >> max(kept, 0))
		}
	}
	return key
}

// after says whether the kernel's walk through an LPM trie comes to a after b:
// children before their parent, 0 before 1.
func after(a, b []byte) bool {
	shorter := min(prefixLength(a), prefixLength(b))
	at := differAt(a[4:], b[4:])
	if at >= shorter {
		return prefixLength(a) < prefixLength(b)
	}
	return a[4+at/8]>>(7-at%8)&1 == 1
}

// differAt returns the number of the first bit that differs.
func differAt(a, b []byte) uint32 {
	for i := range a {
		if x := a[i] ^ b[i]; x != 0 {
			return uint32(8*i + bits.LeadingZeros8(x))
		}
	}
	return uint32(8 * len(a))
}
