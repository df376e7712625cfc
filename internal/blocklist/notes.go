package blocklist

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"bpfnet/bpf"
	"bpfnet/internal/maps"
)

// notes are the texts of the map block_notes. Many entries share one.
type notes struct {
	m       *ebpf.Map
	numbers map[string]uint32
	texts   map[uint32]string
	asked   map[uint32]bool // numbers that something is about to have
	last    uint32
	lost    uint64 // texts that found no room
}

func (s *state) readNotes(ctx context.Context) (*notes, error) {
	if s.notes != nil {
		return s.notes, nil
	}
	n := &notes{m: s.Map("block_notes"), numbers: map[string]uint32{}, texts: map[uint32]string{}, asked: map[uint32]bool{}}
	err := maps.Walk(ctx, n.m, func(key, value []byte) error {
		number, text := binary.NativeEndian.Uint32(key), unix.ByteSliceToString(value)
		n.numbers[text], n.texts[number] = number, text
		n.last = max(n.last, number)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read map block_notes: %w", err)
	}
	s.notes = n
	return n, nil
}

// longestReason is how many bytes of a reason are kept.
const longestReason = len(bpf.BlockNote{}.Text) - 1

// number returns the number of a text, which it writes if it is new; 0 for no
// text, and for one that finds no room.
func (n *notes) number(text string) (uint32, error) {
	var note bpf.BlockNote
	text = cutText(text, longestReason)
	if text == "" {
		return 0, nil
	}
	if number, ok := n.numbers[text]; ok {
		n.asked[number] = true
		return number, nil
	}
	for i := range text {
		note.Text[i] = int8(text[i])
	}
	err := n.m.Put(n.last+1, note)
	if errors.Is(err, unix.E2BIG) {
		n.lost++
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("write map block_notes: %w", err)
	}
	n.last++
	n.numbers[text], n.texts[n.last], n.asked[n.last] = n.last, text, true
	return n.last, nil
}

// known is number for a dry run: a text that is new has a number that no entry
// has.
func (n *notes) known(text string) uint32 {
	if number, ok := n.numbers[cutText(text, longestReason)]; ok {
		return number
	}
	return ^uint32(0)
}

// cutText shortens a text to some bytes, at the end of a character.
func cutText(text string, most int) string {
	for len(text) > most || !utf8.ValidString(text) {
		if len(text) == 0 {
			break
		}
		text = text[:min(most, len(text)-1)]
	}
	return text
}

// keep deletes the notes that aren't used.
func (n *notes) keep(used map[uint32]bool) {
	for number := range n.texts {
		if !used[number] && !n.asked[number] {
			_ = n.m.Delete(number) // it costs room alone
		}
	}
}
