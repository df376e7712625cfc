package blocklist

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cilium/ebpf"

	"bpfnet/bpf"
	"bpfnet/internal/datapath"
	"bpfnet/internal/dns"
	"bpfnet/internal/fault"
	"bpfnet/internal/maps"
)

// group is the name of the maps that all programs share.
const group = "blocklist"

// episode is how long after an event an entry and an address make no other.
const episode = 10 * time.Second

// Engine is what a Store needs of the datapath.
type Engine interface {
	WithShared(ctx context.Context, group string, fn func(*datapath.Shared) error) error
	ReadShared(ctx context.Context, group string, fn func(*datapath.Shared) error) error
	InNetNS(fn func() error) error
	PeekShared(group string) (*datapath.Shared, error)
	ClaimShared(group string) (release func(), free bool, err error)
}

// Store implements API on the pinned maps.
type Store struct {
	engine   Engine
	resolver func() (Resolver, error)
}

// Resolver asks for the addresses of domains. done is called as answers come,
// never twice at a time; one name doesn't wait for another.
type Resolver interface {
	ResolveAll(ctx context.Context, names []string, done func(i int, found dns.Resolution, err error))
}

var _ API = (*Store)(nil)

// New returns the lists that are pinned where the engine works. It doesn't touch
// the kernel before the first call.
func New(engine Engine) *Store {
	return &Store{engine, func() (Resolver, error) { return nil, errors.New("nothing resolves domains") }}
}

// ResolveWith says what makes the resolver once one is needed.
func (s *Store) ResolveWith(resolver func() (Resolver, error)) *Store {
	s.resolver = resolver
	return s
}

// state is what is pinned, while the lock is held.
type state struct {
	*datapath.Shared
	config bpf.BlockConfig
	lists  [bpf.MaxLists]bpf.BlockList
	clock

	// nil until needed
	notes   *notes
	domains *domains
	answers *answers
	owned   map[uint32]owners // by the number of the list of addresses
	guard   *guard

	addressesAdded, addressesRemoved uint64 // of domains
}

// openState reads what is pinned; without maps there are no lists.
func openState(shared *datapath.Shared) (*state, error) {
	clock, err := readClock()
	if err != nil {
		return nil, err
	}
	s := &state{Shared: shared, clock: clock}
	if shared == nil {
		return s, nil
	}
	settings, err := s.Inner("settings", 0)
	if err != nil {
		return nil, err
	}
	if settings != nil {
		if err := settings.Lookup(uint32(0), &s.config); err != nil {
			return nil, fmt.Errorf("read map settings: %w", err)
		}
	}
	for i := range s.lists {
		var list bpf.BlockList
		if err := s.Map("block_lists").Lookup(uint32(i), &list); err != nil {
			return nil, fmt.Errorf("read map block_lists: %w", err)
		}
		if s.config.Lists>>i&1 != 0 {
			s.lists[i] = list
		}
	}
	return s, nil
}

// write runs fn on what is pinned, with the exclusive lock; a dry run only looks
// at what there is.
func (s *Store) write(ctx context.Context, dryRun bool, fn func(*state) error) error {
	if dryRun {
		return s.read(ctx, fn)
	}
	return s.engine.WithShared(ctx, group, onState(func(st *state) error {
		if err := st.repair(); err != nil {
			return err
		}
		return fn(st)
	}))
}

// repair takes away what a killed writer left of lists that aren't in force, and
// counts the entries of one that it was changing.
func (s *state) repair() error {
	for number := range uint32(bpf.MaxLists) {
		if s.lists[number].Stale == unfinished {
			if err := s.recount(number); err != nil {
				return err
			}
		}
		if s.config.Lists>>number&1 != 0 {
			continue
		}
		for _, six := range []bool{false, true} {
			if !s.HasPin(outerOf(six), number) {
				continue
			}
			m, err := s.Inner(outerOf(six), number)
			if err == nil && m != nil {
				err = s.discard(number)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// read runs fn on what is pinned, which may be nothing.
func (s *Store) read(ctx context.Context, fn func(*state) error) error {
	return s.engine.ReadShared(ctx, group, onState(fn))
}

func onState(fn func(*state) error) func(*datapath.Shared) error {
	return func(shared *datapath.Shared) error {
		s, err := openState(shared)
		if err != nil {
			return err
		}
		return fn(s)
	}
}

func nameOf(list bpf.BlockList) string { return textOf(list.Name[:]) }

// textOf reads a text of C.
func textOf(chars []int8) string {
	var b strings.Builder
	for _, c := range chars {
		if c == 0 {
			break
		}
		b.WriteByte(byte(c))
	}
	return b.String()
}

// find returns the number of a list.
func (s *state) find(name string) (uint32, bool) {
	for i := range s.lists {
		if nameOf(s.lists[i]) == name {
			return uint32(i), true
		}
	}
	return 0, false
}

// all lists the lists, sorted, those of addresses of domains with them.
func (s *state) all() []string {
	var names []string
	for i := range s.lists {
		if name := nameOf(s.lists[i]); name != "" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// names lists the lists that users made, sorted.
func (s *state) names() []string {
	return slices.DeleteFunc(s.all(), func(name string) bool { return strings.HasSuffix(name, addressesSuffix) })
}

// mustFind is find for a list that has to be there.
func (s *state) mustFind(name string) (uint32, error) {
	if number, ok := s.find(name); ok {
		return number, nil
	}
	err := fault.New(fault.ErrNotFound, "no list %q", name)
	if names := s.names(); len(names) > 0 {
		return 0, err.Hint("lists: %s", strings.Join(names, ", "))
	}
	return 0, err.Hint("bpfnet blocklist add ADDRESS makes one")
}

// mostLists is how many lists there can be: one number stays free, to lay a list
// out that takes the place of another.
const mostLists = bpf.MaxLists - 1

// free returns a number that no list has, for a list of that name.
func (s *state) free(name string) (uint32, error) {
	if _, exists := s.find(name); !exists && len(s.all()) >= mostLists {
		return 0, tooManyLists()
	}
	for number := range s.lists {
		if s.config.Lists>>number&1 == 0 {
			return uint32(number), nil
		}
	}
	return 0, errors.New("no number is free for the list")
}

func tooManyLists() error {
	return fault.New(fault.ErrConflict, "there can be %d lists, and one with domains counts twice: no room for another", mostLists)
}

// define adds a list to the settings, with the actions it has at first: one of the
// addresses of domains does what the list of the domains does. Nothing is written
// yet.
func (s *state) define(number uint32, name string) {
	bit := uint32(1) << number
	of, isOfDomains := s.find(strings.TrimSuffix(name, addressesSuffix))
	switch {
	case isOfDomains:
		s.copyBits(of, number)
	case name == AllowList:
		s.config.Allow |= bit
	default:
		s.config.Drop, s.config.Alert = s.config.Drop|bit, s.config.Alert|bit
		s.config.Source, s.config.Destination = s.config.Source|bit, s.config.Destination|bit
	}
	s.config.Lists |= bit
	s.lists[number] = bpf.BlockList{Identity: s.newIdentity()}
	for i := range name {
		s.lists[number].Name[i] = int8(name[i])
	}
	s.config.Identities[number] = uint8(s.lists[number].Identity)
}

// newIdentity returns one that no list in force has.
func (s *state) newIdentity() uint64 {
	for identity := uint64(0); ; identity++ {
		if !slices.ContainsFunc(s.lists[:], func(l bpf.BlockList) bool { return nameOf(l) != "" && l.Identity == identity }) {
			return identity
		}
	}
}

// masks are the settings that have a bit for each list.
func (s *state) masks() []*uint32 {
	return []*uint32{&s.config.Lists, &s.config.Drop, &s.config.Alert, &s.config.Source, &s.config.Destination, &s.config.Allow}
}

// allows says whether a list overrules the others.
func (s *state) allows(number uint32) bool { return s.config.Allow>>number&1 != 0 }

// copyBits has a list do what another does.
func (s *state) copyBits(from, to uint32) {
	for _, mask := range s.masks() {
		setBit(mask, to, *mask>>from&1 != 0)
	}
}

// move gives a list another number.
func (s *state) move(from, to uint32) {
	s.copyBits(from, to)
	for _, mask := range s.masks() {
		setBit(mask, from, false)
	}
	s.config.Identities[to], s.config.Identities[from] = s.config.Identities[from], 0
	s.lists[to], s.lists[from] = s.lists[from], bpf.BlockList{}
}

// undefine takes a list out of the settings.
func (s *state) undefine(number uint32) {
	for _, mask := range s.masks() {
		setBit(mask, number, false)
	}
	s.config.Identities[number] = 0
	s.lists[number] = bpf.BlockList{}
}

// checkName refuses names that can't be stored or told from other words.
func checkName(name string) error {
	valid := func(r rune) bool {
		return r == '-' || r == '_' || r == '.' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'
	}
	if name == "" || len(name) > longestName || name[0] == '-' || strings.IndexFunc(name, func(r rune) bool { return !valid(r) }) >= 0 {
		return fault.New(fault.ErrUsage, "list %q: a name has 1 to %d letters, digits and the signs - _ .", name, longestName)
	}
	return nil
}

const longestName = len(bpf.BlockList{}.Name) - len(addressesSuffix) - 1

func (s *state) action(number uint32) Action {
	drop, alert := s.config.Drop>>number&1 != 0, s.config.Alert>>number&1 != 0
	switch {
	case s.allows(number):
		return Allow
	case drop && alert:
		return AlertAndDrop
	case drop:
		return Drop
	default:
		return Alert
	}
}

func (s *state) match(number uint32) Match {
	source, destination := s.config.Source>>number&1 != 0, s.config.Destination>>number&1 != 0
	switch {
	case source && destination:
		return Both
	case source:
		return Source
	default:
		return Destination
	}
}

// setBit sets or clears a list's bit of a mask.
func setBit(mask *uint32, number uint32, set bool) {
	*mask &^= 1 << number
	if set {
		*mask |= 1 << number
	}
}

// saveConfig puts the settings in force, as a whole.
func (s *state) saveConfig() error {
	current, err := s.Inner("settings", 0)
	if err != nil {
		return err
	}
	var before bpf.BlockConfig
	if current != nil {
		if err := current.Lookup(uint32(0), &before); err != nil {
			return fmt.Errorf("read map settings: %w", err)
		}
	}
	s.config.EpisodeSeconds = uint32(episode / time.Second)
	if before == s.config {
		return nil
	}
	inner, err := newInner("settings", 0)
	if err != nil {
		return err
	}
	if err := inner.Put(uint32(0), s.config); err != nil {
		inner.Close()
		return fmt.Errorf("write map settings: %w", err)
	}
	return s.SetInner("settings", 0, inner)
}

// saveList writes what is known of a list.
func (s *state) saveList(number uint32) error { return s.writeList(number, s.lists[number]) }

func (s *state) writeList(number uint32, list bpf.BlockList) error {
	if err := s.Map("block_lists").Put(number, list); err != nil {
		return fmt.Errorf("write map block_lists: %w", err)
	}
	return nil
}

// newInner makes a map for an entry of a map of maps, for a number of entries.
func newInner(outer string, entries int) (*ebpf.Map, error) {
	program, _ := bpf.Lookup("blocklist")
	spec, err := program.Spec()
	if err != nil {
		return nil, err
	}
	inner := spec.Maps[outer].InnerMap.Copy()
	inner.Name = strings.TrimSuffix(outer, "s")
	if entries > 0 {
		inner.MaxEntries = uint32(entries)
	}
	m, err := ebpf.NewMap(inner)
	if err != nil {
		return nil, fmt.Errorf("make a map for %d entries: %w", entries, err)
	}
	return m, nil
}

// outerOf names the map of maps that has the entries of a family.
func outerOf(six bool) string {
	if six {
		return "lists6"
	}
	return "lists4"
}

// entries reads all entries of a list, unsorted.
func (s *state) entries(ctx context.Context, number uint32) ([]entry, error) {
	all := make([]entry, 0, s.lists[number].Entries4+s.lists[number].Entries6)
	for _, six := range []bool{false, true} {
		m, err := s.Inner(outerOf(six), number)
		if err != nil {
			return nil, err
		}
		if m == nil {
			continue
		}
		err = maps.Walk(ctx, m, func(key, value []byte) error {
			all = append(all, readEntry(key, value))
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("read the entries of list %s: %w", nameOf(s.lists[number]), err)
		}
	}
	return all, nil
}

// lookup reads one entry.
func (s *state) lookup(number uint32, p prefix) (entry, bool, error) {
	m, err := s.Inner(outerOf(p.six), number)
	if err != nil || m == nil {
		return entry{}, false, err
	}
	var value rawEntry
	if p.six {
		err = m.Lookup(p.key6(), &value)
	} else {
		err = m.Lookup(p.key4(), &value)
	}
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return entry{}, false, nil
	}
	if err != nil {
		return entry{}, false, fmt.Errorf("look up %s: %w", p.netip(), err)
	}
	e := entry{prefix: p, expires: binary.NativeEndian.Uint32(value[:]), note: binary.NativeEndian.Uint32(value[4:])}
	return e, true, nil
}
