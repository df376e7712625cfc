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
		list, err := s.describe(name)
		if err != nil {
			return o, err
		}
		o.Lists = append(o.Lists, list)
		o.MemoryBytes += list.MemoryBytes
	}
	program, _ := bpf.Lookup("blocklist")
	for _, m := range program.Maps {
		o.MemoryBytes += memory(s.Map(m.Name))
	}
	for _, r := range rows {
		var each []bpf.Counter
		if err := s.Map("block_rows").Lookup(uint32(r.row), &each); err != nil {
			return o, fmt.Errorf("read map block_rows: %w", err)
		}
		var total Counter
		for _, cpu := range each {
			total.Packets, total.Bytes = total.Packets+cpu.Packets, total.Bytes+cpu.Bytes
		}
		o.Packets[r.name] = total
	}
	return o, nil
}

func (s *state) describe(name string) (List, error) {
	number, _ := s.find(name)
	known := s.lists[number]
	list := List{
		Name: name, Action: s.action(number), Match: s.match(number),
		Entries: known.Entries4 + known.Entries6, IPv4: known.Entries4, IPv6: known.Entries6,
		ChangedAt: time.Unix(int64(known.Changed), 0).UTC(),
	}
	for _, six := range []bool{false, true} {
		m, err := s.Inner(outerOf(six), number)
		if err != nil {
			return List{}, err
		}
		list.MemoryBytes += memory(m)
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
	return nil
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
	for _, name := range s.names() {
		number, _ := s.find(name)
		e, found, err := s.longest(number, address)
		if err != nil {
			return v, err
		}
		if found {
			v.Found = append(v.Found, Found{Entry: r.entry(number, e)})
		}
	}
	v.decide()
	return v, nil
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
