package blocklist

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"bpfnet/bpf"
	"bpfnet/internal/fault"
	"bpfnet/internal/maps"
)

// answer is an address that a domain of a list has.
type answer struct {
	identity uint32 // of the list
	domain   uint32 // its number
	address  netip.Addr
	bpf.BlockAnswer
}

func (a answer) key() bpf.AnswerKey {
	key := bpf.AnswerKey{List: a.identity, Domain: a.domain}
	if a.address.Is4() {
		key.Ipv4 = 1
	}
	key.Address.In6U.U6Addr8 = a.address.As16()
	return key
}

func (a answer) prefix() prefix {
	return newPrefix(netip.PrefixFrom(a.address, a.address.BitLen()))
}

// outlasts says whether a stays longer than b.
func (a answer) outlasts(b answer) bool {
	return b.Expires != 0 && (a.Expires == 0 || a.Expires > b.Expires)
}

// answers are what the map block_answers holds.
type answers struct {
	m   *ebpf.Map
	all map[uint32]map[netip.Addr]answer // by the number of the domain
}

// readAnswers reads the addresses of all domains.
func (s *state) readAnswers(ctx context.Context) (*answers, error) {
	if s.answers != nil {
		return s.answers, nil
	}
	a := &answers{m: s.Map("block_answers"), all: map[uint32]map[netip.Addr]answer{}}
	err := maps.Walk(ctx, a.m, func(key, value []byte) error {
		a.add(readAnswer(key, value))
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read map block_answers: %w", err)
	}
	s.answers = a
	return a, nil
}

func readAnswer(key, value []byte) answer {
	a := answer{
		identity: binary.NativeEndian.Uint32(key), domain: binary.NativeEndian.Uint32(key[4:]),
		address: netip.AddrFrom16([16]byte(key[12:28])),
		BlockAnswer: bpf.BlockAnswer{
			Expires: binary.NativeEndian.Uint32(value), Note: binary.NativeEndian.Uint32(value[4:]),
			Source: bpf.AnswerSource(binary.NativeEndian.Uint32(value[8:])),
		},
	}
	if binary.NativeEndian.Uint16(key[8:]) != 0 {
		a.address = a.address.Unmap()
	}
	return a
}

func (a *answers) add(one answer) {
	if a.all[one.domain] == nil {
		a.all[one.domain] = map[netip.Addr]answer{}
	}
	a.all[one.domain][one.address] = one
}

// put writes an answer; no room for it is fault.ErrConflict.
func (a *answers) put(one answer) error {
	if err := putAnswer(a.m, one); err != nil {
		return err
	}
	a.add(one)
	return nil
}

func putAnswer(m *ebpf.Map, one answer) error {
	err := m.Put(one.key(), one.BlockAnswer)
	if errors.Is(err, unix.E2BIG) {
		return fault.New(fault.ErrConflict, "there is room for %d addresses of domains", m.MaxEntries())
	}
	if err != nil {
		return fmt.Errorf("write map block_answers: %w", err)
	}
	return nil
}

func (a *answers) deleteWhere(gone func(answer) bool) error {
	for number, those := range a.all {
		for address, one := range those {
			if !gone(one) {
				continue
			}
			if err := a.m.Delete(one.key()); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				return fmt.Errorf("write map block_answers: %w", err)
			}
			delete(those, address)
		}
		if len(those) == 0 {
			delete(a.all, number)
		}
	}
	return nil
}

func (a *answers) deleteOf(gone []domain) error {
	numbers := map[uint32]bool{}
	for _, d := range gone {
		numbers[d.Number] = true
	}
	return a.deleteWhere(func(one answer) bool { return numbers[one.domain] })
}

// lasting returns the answer of each address of a list's domains that stays the
// longest, which is why it is blocked.
func (a *answers) lasting(identity uint32) map[netip.Addr]answer {
	lasting := map[netip.Addr]answer{}
	for _, those := range a.all {
		for address, one := range those {
			if one.identity != identity {
				break
			}
			old, found := lasting[address]
			if !found || one.outlasts(old) || !old.outlasts(one) && one.domain < old.domain {
				lasting[address] = one
			}
		}
	}
	return lasting
}

// moveEnds has addresses that the resolver found and that end with their domains do
// so when that changes, and none end later. One that was seen has an end of its own.
func (s *state) moveEnds(ctx context.Context, name string, before, after []domain) error {
	moved := map[uint32][2]uint32{}
	for i, d := range after {
		if before[i].Number != 0 && before[i].Expires != d.Expires {
			moved[d.Number] = [2]uint32{before[i].Expires, d.Expires}
		}
	}
	if len(moved) == 0 {
		return nil
	}
	answers, err := s.readAnswers(ctx)
	if err != nil {
		return err
	}
	for number, ends := range moved {
		old, next := ends[0], ends[1]
		for _, one := range answers.all[number] {
			switch {
			case one.Expires == old && one.Source == bpf.AnswerResolved:
				one.Expires = next
			case next != 0:
				one.Expires = min(one.Expires, next)
			}
			if err := answers.put(one); err != nil {
				return err
			}
		}
	}
	return s.reconcile(ctx, name)
}

// reconcile makes the addresses of a list's domains the entries that packets are
// looked up in.
func (s *state) reconcile(ctx context.Context, name string) error {
	number, exists := s.find(name)
	addresses, has := s.find(addressesOf(name))
	if !exists || !has {
		return nil
	}
	answers, err := s.readAnswers(ctx)
	if err != nil {
		return err
	}
	var wanted []entry
	for _, one := range answers.lasting(uint32(s.lists[number].Identity)) {
		if e := (entry{prefix: one.prefix(), expires: one.Expires, note: one.Note}); !s.isOver(e) {
			wanted = append(wanted, e)
		}
	}
	current, err := s.entries(ctx, addresses)
	if err != nil {
		return err
	}
	return s.turnInto(ctx, addressesOf(name), sortEntries(current), sortEntries(wanted))
}

// turnInto changes the entries of a list in place, one by one.
func (s *state) turnInto(ctx context.Context, name string, current, wanted []entry) error {
	var fresh, gone []entry
	added := uint64(0)
	for _, e := range wanted {
		i, found := slices.BinarySearchFunc(current, e.prefix, func(e entry, p prefix) int { return e.compare(p) })
		if !found || current[i] != e {
			fresh = append(fresh, e)
		}
		if !found {
			added++
		}
	}
	for _, e := range current {
		if _, found := slices.BinarySearchFunc(wanted, e.prefix, func(e entry, p prefix) int { return e.compare(p) }); !found {
			gone = append(gone, e)
		}
	}
	s.addressesAdded, s.addressesRemoved = s.addressesAdded+added, s.addressesRemoved+uint64(len(gone))
	if len(fresh) > 0 {
		if err := s.put(ctx, name, fresh); err != nil {
			return err
		}
	}
	number, _ := s.find(name)
	if err := s.delete(number, gone); err != nil {
		return fault.Join(err, s.touch(number))
	}
	s.dropHits(number, gone)
	s.lists[number].Expires = 0
	s.noteExpiry(number, wanted)
	if err := s.touch(number); err != nil {
		return err
	}
	return s.tidyIfStale(ctx, number)
}
