package maps

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// hasPrefix says whether an LPM trie has exactly this prefix, which a lookup
// doesn't tell: that finds the longest that matches. The kernel's walk does: it
// goes on after a prefix that is there, but begins with the first one for a
// prefix that isn't, and no prefix is followed by the first.
func (h *handle) hasPrefix(key []byte) (bool, error) {
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
