package blocklist

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/cilium/ebpf"

	"bpfnet/bpf"
	"bpfnet/internal/fault"
)

// rows are the names of what became of packets, in the order in which documents
// show them.
var rows = []struct {
	name string
	row  bpf.BlockRow
}{
	{"dropped", bpf.BlockDropped}, {"alerted", bpf.BlockAlerted}, {"allowed", bpf.BlockAllowed},
	{"non_ip", bpf.BlockNonIP}, {"truncated", bpf.BlockTruncated}, {"too_deep", bpf.BlockTooDeep},
	{"hits_full", bpf.BlockHitsFull}, {"events_suppressed", bpf.BlockEventsSuppressed}, {"events_lost", bpf.BlockEventsLost},
}

// Overview implements API.
func (s *Store) Overview(ctx context.Context) (o Overview, err error) {
	err = s.read(ctx, func(st *state) error {
		o, err = st.overview(ctx)
		return err
	})
	return o, err
}

func (s *state) overview(ctx context.Context) (Overview, error) {
	o := Overview{Lists: []List{}, Packets: map[string]Counter{}}
	for _, r := range rows {
		o.Packets[r.name] = Counter{}
	}
	if s.Shared == nil {
		return o, nil
	}
	for _, name := range s.names() {
		list, err := s.describe(ctx, name)
		if err != nil {
			return o, err
		}
		o.Lists = append(o.Lists, list)
		o.MemoryBytes += list.MemoryBytes
	}
	program, _ := bpf.Lookup("blocklist")
	for _, m := range program.Maps {
		taken, err := s.memoryOf(m.Name)
		if err != nil {
			return o, err
		}
		o.MemoryBytes += taken
	}
	for _, r := range rows {
		total, err := readRow(s.Map("block_rows"), r.row)
		if err != nil {
			return o, err
		}
		o.Packets[r.name] = total
	}
	return o, nil
}

// memoryOf is memory of a map of the group, also of one that isn't kept open.
func (s *state) memoryOf(name string) (uint64, error) {
	if m := s.Map(name); m != nil {
		return memory(m), nil
	}
	m, err := s.Open(name)
	if err != nil {
		return 0, err
	}
	defer m.Close()
	return memory(m), nil
}

// readRow adds up a row of the map block_rows.
func readRow(m *ebpf.Map, row bpf.BlockRow) (total Counter, err error) {
	var each []bpf.Counter
	if err := m.Lookup(uint32(row), &each); err != nil {
		return total, fmt.Errorf("read map block_rows: %w", err)
	}
	for _, cpu := range each {
		total.Packets, total.Bytes = total.Packets+cpu.Packets, total.Bytes+cpu.Bytes
	}
	return total, nil
}

func (s *state) describe(ctx context.Context, name string) (List, error) {
	number, _ := s.find(name)
	known, domains := s.lists[number], s.countDomains(ctx, number)
	list := List{
		Name: name, Action: s.action(number), Match: s.match(number),
		Entries: known.Entries4 + known.Entries6 + domains, IPv4: known.Entries4, IPv6: known.Entries6, Domains: domains,
		ChangedAt: time.Unix(int64(known.Changed), 0).UTC(),
	}
	numbers := []uint32{number}
	if addresses, has := s.find(addressesOf(name)); has {
		numbers = append(numbers, addresses)
		list.Addresses = s.lists[addresses].Entries4 + s.lists[addresses].Entries6
	}
	for _, number := range numbers {
		for _, six := range []bool{false, true} {
			m, err := s.Inner(outerOf(six), number)
			if err != nil {
				return List{}, err
			}
			list.MemoryBytes += memory(m)
		}
	}
	return list, nil
}

// memory is what a map takes in the kernel, in bytes; 0 if it can't be told.
func memory(m *ebpf.Map) uint64 {
	if m == nil {
		return 0
	}
	info, err := m.Info()
	if err != nil {
		return 0
	}
	taken, _ := info.Memlock()
	return taken
}

// Entries implements API.
func (s *Store) Entries(ctx context.Context, list string, hits bool, visit func(Entry) error) error {
	return s.read(ctx, func(st *state) error {
		names := st.names()
		if list != "" {
			if _, err := st.mustFind(list); err != nil {
				return err
			}
			names = []string{list}
		}
		if len(names) == 0 {
			return nil
		}
		r, err := st.reader(ctx, hits)
		if err != nil {
			return err
		}
		for _, name := range names {
			if err := r.visit(ctx, name, visit); err != nil {
				return err
			}
		}
		return nil
	})
}

// Hits implements API.
func (s *Store) Hits(ctx context.Context, visit func(ListHits)) error {
	return s.read(ctx, func(st *state) error {
		if st.Shared == nil {
			return nil
		}
		numbers := map[uint32]uint32{} // by identity
		for i := range st.lists {
			if nameOf(st.lists[i]) != "" {
				numbers[uint32(st.lists[i].Identity)] = uint32(i)
			}
		}
		return st.eachHit(ctx, func(key bpf.HitKey, counters bpf.HitCounters) error {
			if number, ok := numbers[uint32(key.List)]; ok {
				name := strings.TrimSuffix(nameOf(st.lists[number]), addressesSuffix)
				visit(ListHits{HitsID(key), name, st.action(number), counters.Packets, counters.Bytes})
			}
			return nil
		})
	})
}

// reader makes Entries of entries.
type reader struct {
	*state
	hits map[bpf.HitKey]bpf.HitCounters // nil unless they are asked for
}

func (s *state) reader(ctx context.Context, hits bool) (reader, error) {
	r := reader{state: s}
	if _, err := s.readNotes(ctx); err != nil {
		return r, err
	}
	if !hits {
		return r, nil
	}
	r.hits = map[bpf.HitKey]bpf.HitCounters{}
	return r, s.eachHit(ctx, func(key bpf.HitKey, counters bpf.HitCounters) error {
		r.hits[key] = counters
		return nil
	})
}

func (r reader) visit(ctx context.Context, name string, visit func(Entry) error) error {
	number, _ := r.find(name)
	all, err := r.entries(ctx, number)
	if err != nil {
		return err
	}
	for _, e := range sortEntries(all) {
		if r.isOver(e) {
			continue
		}
		if err := visit(r.entry(number, e)); err != nil {
			return err
		}
	}
	return r.visitDomains(ctx, name, visit)
}

func (r reader) entry(number uint32, e entry) Entry {
	doc := Entry{
		List: nameOf(r.lists[number]), Prefix: e.netip(), Action: r.action(number),
		Reason: r.notes.texts[e.note], Expires: r.expiry(e),
	}
	if r.hits == nil {
		return doc
	}
	counters := r.hits[e.hitKey(uint32(r.lists[number].Identity))]
	doc.Hits = &Hits{Packets: counters.Packets, Bytes: counters.Bytes}
	if counters.LastSeen != 0 {
		doc.Hits.LastSeen = r.now.Add(time.Duration(counters.LastSeen) - r.up).UTC()
	}
	return doc
}

// visitDomains visits the domains of a list, and after each its addresses.
func (r reader) visitDomains(ctx context.Context, name string, visit func(Entry) error) error {
	number, _ := r.find(name)
	addresses, has := r.find(addressesOf(name))
	if !has {
		return nil
	}
	known, err := r.readDomains(ctx)
	if err != nil {
		return err
	}
	owned, err := r.addresses(ctx, addresses)
	if err != nil {
		return err
	}
	for _, d := range known.of(uint32(r.lists[number].Identity)) {
		if r.isOver(entry{expires: d.Expires}) {
			continue
		}
		if err := visit(r.domain(number, d, owned[d.Number])); err != nil {
			return err
		}
		for _, e := range owned[d.Number] {
			if err := visit(e); err != nil {
				return err
			}
		}
	}
	return nil
}

// addresses returns the entries of a list of addresses, sorted, by the number of the
// domain that they are blocked for.
func (r reader) addresses(ctx context.Context, number uint32) (map[uint32][]Entry, error) {
	all, err := r.entries(ctx, number)
	if err != nil {
		return nil, err
	}
	o, err := r.owners(ctx, number)
	if err != nil {
		return nil, err
	}
	owned := map[uint32][]Entry{}
	for _, e := range sortEntries(all) {
		if r.isOver(e) {
			continue
		}
		doc := r.entry(number, e)
		owner := o.name(&doc)
		owned[owner] = append(owned[owner], doc)
	}
	return owned, nil
}

// owners say which domains the addresses of a list are blocked for.
type owners struct {
	lasting map[netip.Addr]answer
	names   map[uint32]string // by number
}

// owners returns those of a list of addresses, as they were when it was called first.
func (s *state) owners(ctx context.Context, number uint32) (owners, error) {
	if o, known := s.owned[number]; known {
		return o, nil
	}
	base, _ := s.find(strings.TrimSuffix(nameOf(s.lists[number]), addressesSuffix))
	identity := uint32(s.lists[base].Identity)
	answers, err := s.readAnswers(ctx)
	if err != nil {
		return owners{}, err
	}
	known, err := s.readDomains(ctx)
	if err != nil {
		return owners{}, err
	}
	o := owners{answers.lasting(identity), map[uint32]string{}}
	for _, d := range known.of(identity) {
		o.names[d.Number] = d.name
	}
	if s.owned == nil {
		s.owned = map[uint32]owners{}
	}
	s.owned[number] = o
	return o, nil
}

// forgetDomains has domains and their addresses be read again.
func (s *state) forgetDomains() { s.domains, s.answers, s.owned = nil, nil, nil }

// name says which domain an entry is an address of, and returns the domain's number.
func (o owners) name(e *Entry) uint32 {
	e.List = strings.TrimSuffix(e.List, addressesSuffix)
	owner := o.lasting[e.Prefix.Addr()]
	e.Domain, e.FoundBy = o.names[owner.domain], foundBy(owner.Source)
	return owner.domain
}

func foundBy(source bpf.AnswerSource) FoundBy {
	if source == bpf.AnswerSeen {
		return ByAnswer
	}
	return ByResolver
}

// domain returns the entry of a domain that has addresses.
func (r reader) domain(number uint32, d domain, addresses []Entry) Entry {
	doc := Entry{
		List: nameOf(r.lists[number]), Domain: d.name, Action: r.action(number), Status: d.status(),
		Reason: r.notes.texts[d.Note], Expires: r.expiry(entry{expires: d.Expires}),
	}
	if d.Checked != 0 {
		doc.Checked = r.expiry(entry{expires: d.Checked})
	}
	if r.hits == nil {
		return doc
	}
	doc.Hits = &Hits{}
	for _, e := range addresses {
		doc.Hits.Packets, doc.Hits.Bytes = doc.Hits.Packets+e.Hits.Packets, doc.Hits.Bytes+e.Hits.Bytes
		if e.Hits.LastSeen.After(doc.Hits.LastSeen) {
			doc.Hits.LastSeen = e.Hits.LastSeen
		}
	}
	return doc
}

func (d domain) status() Status {
	switch {
	case d.isWildcard():
		return Wildcard
	case d.Status == bpf.DomainResolved:
		return Resolved
	case d.Status == bpf.DomainNoName:
		return NoName
	case d.Status == bpf.DomainFailed:
		return Failed
	}
	return Pending
}

// readHit reads an entry of the map hits.
func readHit(key, value []byte) (bpf.HitKey, bpf.HitCounters) {
	var k bpf.HitKey
	k.List, k.Prefixlen, k.Ipv4 = key[0], key[1], binary.NativeEndian.Uint16(key[2:])
	copy(k.Address.In6U.U6Addr8[:], key[4:])
	return k, bpf.HitCounters{
		Packets:  binary.NativeEndian.Uint64(value),
		Bytes:    binary.NativeEndian.Uint64(value[8:]),
		LastSeen: binary.NativeEndian.Uint64(value[16:]),
	}
}

// Test implements API.
func (s *Store) Test(ctx context.Context, address netip.Addr) (v Verdict, err error) {
	err = s.read(ctx, func(st *state) error {
		v, err = st.test(ctx, address.Unmap().WithZone(""))
		return err
	})
	return v, err
}

// test looks an address up in each list as the programs do.
func (s *state) test(ctx context.Context, address netip.Addr) (Verdict, error) {
	v := Verdict{Address: address, Action: "pass", Found: []Found{}}
	if s.Shared == nil {
		return v, nil
	}
	r, err := s.reader(ctx, true)
	if err != nil {
		return v, err
	}
	for _, name := range s.all() {
		number, _ := s.find(name)
		e, found, err := s.longest(number, address)
		if err != nil {
			return v, err
		}
		if !found {
			continue
		}
		doc := r.entry(number, e)
		if strings.HasSuffix(name, addressesSuffix) {
			o, err := s.owners(ctx, number)
			if err != nil {
				return v, err
			}
			o.name(&doc)
		}
		v.Found = append(v.Found, Found{Entry: doc})
	}
	v.decide()
	return v, nil
}

// TestDomain implements API.
func (s *Store) TestDomain(ctx context.Context, name string) (v Verdict, err error) {
	v = Verdict{Domain: name, Action: "pass", Found: []Found{}}
	err = s.read(ctx, func(st *state) error {
		if st.Shared == nil {
			return nil
		}
		v.Found, err = st.covering(ctx, name)
		v.decide()
		return err
	})
	return v, err
}

// covering returns the domains on lists that a name belongs to.
func (s *state) covering(ctx context.Context, name string) ([]Found, error) {
	found := []Found{}
	r, err := s.reader(ctx, true)
	if err != nil {
		return nil, err
	}
	known, err := s.readDomains(ctx)
	if err != nil {
		return nil, err
	}
	for _, list := range s.names() {
		number, _ := s.find(list)
		for _, candidate := range candidates(name) {
			d, has := known.find(uint32(s.lists[number].Identity), candidate)
			if !has || s.isOver(entry{expires: d.Expires}) {
				continue
			}
			addresses, _ := s.find(addressesOf(list))
			owned, err := r.addresses(ctx, addresses)
			if err != nil {
				return nil, err
			}
			found = append(found, Found{Entry: r.domain(number, d, owned[d.Number])})
		}
	}
	return found, nil
}

// longest returns the longest entry of a list that covers an address.
func (s *state) longest(number uint32, address netip.Addr) (entry, bool, error) {
	for length := address.BitLen(); length >= 0; length-- {
		if !s.hasLength(address.Is6(), uint8(length)) {
			continue
		}
		e, found, err := s.lookup(number, newPrefix(netip.PrefixFrom(address, length)))
		if err != nil || found && !s.isOver(e) {
			return e, err == nil, err
		}
	}
	return entry{}, false, nil
}

// decide says what the entries that were found lead to.
func (v *Verdict) decide() {
	drop, alert := false, false
	for i := range v.Found {
		switch v.Found[i].Action {
		case Allow:
			v.Found[i].Decides, v.Action = true, string(Allow)
			return
		case Drop:
			drop = true
		case Alert:
			alert = true
		case AlertAndDrop:
			drop, alert = true, true
		}
	}
	for i := range v.Found {
		v.Found[i].Decides = !drop || v.Found[i].Action != Alert
	}
	switch {
	case drop && alert:
		v.Action = string(AlertAndDrop)
	case drop:
		v.Action = string(Drop)
	case alert:
		v.Action = string(Alert)
	}
}

// ParseAction reads an action of a list.
func ParseAction(word string) (Action, error) {
	switch a := Action(word); a {
	case Drop, Alert, AlertAndDrop:
		return a, nil
	}
	if strings.EqualFold(word, "drop+alert") {
		return AlertAndDrop, nil
	}
	return "", fault.New(fault.ErrUsage, "unknown action %q: it is drop, alert or alert+drop", word)
}

// ParseMatch reads what is looked up in a list.
func ParseMatch(word string) (Match, error) {
	switch m := Match(word); m {
	case Source, Destination, Both:
		return m, nil
	}
	return "", fault.New(fault.ErrUsage, "unknown addresses %q: they are source, destination or both", word)
}
