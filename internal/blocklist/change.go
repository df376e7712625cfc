package blocklist

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/cilium/ebpf"

	"bpfnet/bpf"
	"bpfnet/internal/fault"
)

// Add implements API.
func (s *Store) Add(ctx context.Context, r AddRequest) (change Change, err error) {
	if err := checkName(r.List); err != nil {
		return Change{}, err
	}
	if len(r.Reason) > longestReason {
		return Change{}, fault.New(fault.ErrUsage, "the reason has %d bytes, more than %d", len(r.Reason), longestReason)
	}
	err = s.write(ctx, r.DryRun, func(st *state) error {
		change, err = st.add(ctx, r)
		return err
	})
	if err != nil || r.DryRun || len(r.Domains) == 0 {
		return change, err
	}
	return change, s.refresh(ctx, func(_ *state, list string, d domain) bool {
		return list == r.List && slices.Contains(r.Domains, d.name)
	}, &change)
}

func (s *state) add(ctx context.Context, r AddRequest) (Change, error) {
	if !r.Force && r.List != AllowList {
		if err := refuseOwn(r.Prefixes); err != nil {
			return Change{}, err
		}
	}
	change := Change{List: r.List}
	if err := s.purge(ctx, &change, r.DryRun); err != nil {
		return Change{}, err
	}
	note, err := s.note(ctx, r.Reason, r.DryRun)
	if err != nil {
		return Change{}, err
	}
	var wanted []entry
	for _, p := range r.Prefixes {
		wanted = append(wanted, entry{prefix: newPrefix(p), expires: s.lifetime(r.Lifetime), note: note})
	}
	number, exists := s.find(r.List)
	fresh, err := s.compare(number, exists, sortEntries(wanted), &change)
	if err != nil {
		return Change{}, err
	}
	domains, err := s.compareDomains(ctx, r.List, r.domains(s, note), &change)
	if err == nil {
		err = s.hasRoomFor(ctx, r.List, domains, nil)
	}
	if err != nil {
		return Change{}, err
	}
	if len(fresh) > 0 && !r.DryRun {
		if err := s.put(ctx, r.List, fresh); err != nil {
			return Change{}, err
		}
	}
	if !r.DryRun {
		err = s.putDomains(ctx, r.List, domains)
	}
	return s.finish(ctx, change, r.List, r.DryRun), err
}

func (r AddRequest) domains(s *state, note uint32) (all []wantedDomain) {
	for _, name := range r.Domains {
		all = append(all, wantedDomain{name, note, s.lifetime(r.Lifetime), r.Grace, r.Force})
	}
	return all
}

// finish completes what is said about a change.
func (s *state) finish(ctx context.Context, change Change, name string, dryRun bool) Change {
	change.settle()
	if number, ok := s.find(name); ok {
		change.Entries = s.lists[number].Entries4 + s.lists[number].Entries6 + s.countDomains(ctx, number)
	}
	if dryRun {
		change.Entries += change.Added - change.Removed
	}
	if s.notes != nil && s.notes.lost > 0 {
		change.Notes = append(change.Notes, fmt.Sprintf("reasons that found no room: %d; at most %d different ones are kept", s.notes.lost, s.notes.m.MaxEntries()))
	}
	return change
}

// settle says whether anything has changed.
func (c *Change) settle() {
	c.Changed = c.Changed || c.Added+c.Updated+c.Removed+c.Expired+c.AddressesAdded+c.AddressesRemoved > 0
}

// note returns the number of a reason; in a dry run of an unknown one it is a
// number that no entry has.
func (s *state) note(ctx context.Context, reason string, dryRun bool) (uint32, error) {
	if reason == "" || s.Shared == nil {
		return 0, nil
	}
	notes, err := s.readNotes(ctx)
	if err != nil {
		return 0, err
	}
	if dryRun {
		return notes.known(reason), nil
	}
	return notes.number(reason)
}

// compare counts what entries would change in a list, and returns those.
func (s *state) compare(number uint32, exists bool, wanted []entry, change *Change) ([]entry, error) {
	var fresh []entry
	for _, e := range wanted {
		var old entry
		found, err := false, error(nil)
		if exists {
			old, found, err = s.lookup(number, e.prefix)
		}
		switch {
		case err != nil:
			return nil, err
		case !found:
			change.Added++
		case old == e:
			change.Unchanged++
			continue
		default:
			change.Updated++
		}
		fresh = append(fresh, e)
	}
	return fresh, nil
}

// put writes entries to a list: where there is room into its maps, else into new
// ones.
func (s *state) put(ctx context.Context, name string, fresh []entry) error {
	number, exists := s.find(name)
	if exists {
		room, err := s.hasRoom(number, fresh)
		if err != nil {
			return err
		}
		if room {
			return s.putInPlace(number, fresh)
		}
	}
	if exists {
		old, err := s.entries(ctx, number)
		if err != nil {
			return err
		}
		return s.rewrite(ctx, name, sortEntries(old, fresh))
	}
	return s.rewrite(ctx, name, sortEntries(fresh))
}

// hasRoom says whether the maps of a list have room for more entries, all of
// which may be new.
func (s *state) hasRoom(number uint32, fresh []entry) (bool, error) {
	for _, six := range []bool{false, true} {
		n := 0
		for _, e := range fresh {
			if e.six == six {
				n++
			}
		}
		if n == 0 {
			continue
		}
		m, err := s.Inner(outerOf(six), number)
		if err != nil {
			return false, err
		}
		if m == nil || s.count(number, six)+uint64(n) > uint64(m.MaxEntries()) {
			return false, nil
		}
	}
	return true, nil
}

func (s *state) count(number uint32, six bool) uint64 {
	if six {
		return s.lists[number].Entries6
	}
	return s.lists[number].Entries4
}

// putInPlace writes entries to the maps of a list: first the bits that lead to
// them, then they.
func (s *state) putInPlace(number uint32, fresh []entry) error {
	live, err := openFiltersOf(s.Shared, func(six bool) bool {
		return slices.ContainsFunc(fresh, func(e entry) bool { return e.six == six })
	})
	if err != nil {
		return err
	}
	defer live.Close()
	for _, e := range fresh {
		live.add(e.prefix, s.allows(number))
	}
	s.addLengths(fresh)
	if err := s.saveConfig(); err != nil {
		return err
	}
	if err := s.begin(number); err != nil {
		return err
	}
	var added, changed []entry // what has to go, and what was there, when one fails
	for _, e := range fresh {
		old, found, err := s.lookup(number, e.prefix)
		if err == nil {
			err = s.putEntry(number, e)
		}
		if err != nil {
			return fault.Join(err, s.putBack(number, added, changed))
		}
		if found {
			changed = append(changed, old)
			continue
		}
		added = append(added, e)
		s.grow(number, e.six, 1)
	}
	s.noteExpiry(number, fresh)
	return s.touch(number)
}

// putBack undoes changes of the maps of a list.
func (s *state) putBack(number uint32, added, changed []entry) error {
	errs := []error{s.delete(number, added)}
	for _, e := range changed {
		errs = append(errs, s.putEntry(number, e))
	}
	return fault.Join(errs...)
}

func (s *state) grow(number uint32, six bool, by int64) {
	list := &s.lists[number]
	if six {
		list.Entries6 = uint64(int64(list.Entries6) + by)
	} else {
		list.Entries4 = uint64(int64(list.Entries4) + by)
	}
}

// noteExpiry remembers when the next entry ends.
func (s *state) noteExpiry(number uint32, entries []entry) {
	list := &s.lists[number]
	for _, e := range entries {
		if e.expires != 0 && (list.Expires == 0 || uint64(e.expires) < list.Expires) {
			list.Expires = uint64(e.expires)
		}
	}
}

// unfinished is the Stale of a list whose entries are being changed in place: if it
// is still there later, the writer was killed, and what is known of the list isn't so.
const unfinished = math.MaxUint64

// begin says that entries of a list are about to change, until touch.
func (s *state) begin(number uint32) error {
	list := s.lists[number]
	list.Stale = unfinished
	return s.writeList(number, list)
}

// recount finds out anew what is known of a list.
func (s *state) recount(number uint32) error {
	ctx, list := context.Background(), &s.lists[number]
	entries, err := s.entries(ctx, number)
	if err != nil {
		return err
	}
	list.Entries4, list.Entries6, list.Stale, list.Expires = 0, 0, 0, 0
	for _, e := range entries {
		s.grow(number, e.six, 1)
	}
	s.noteExpiry(number, entries)
	if err := s.noteDomainExpiry(ctx, number); err != nil {
		return err
	}
	return s.saveList(number)
}

// touch writes what is known of a list that was changed.
func (s *state) touch(number uint32) error {
	s.lists[number].Changed = uint64(s.now.Unix())
	return s.saveList(number)
}

func (s *state) putEntry(number uint32, e entry) error {
	m, err := s.Inner(outerOf(e.six), number)
	if err != nil {
		return err
	}
	if e.six {
		err = m.Put(e.key6(), e.value())
	} else {
		err = m.Put(e.key4(), e.value())
	}
	if err != nil {
		return fmt.Errorf("add %s: %w", e.netip(), err)
	}
	return nil
}

// delete removes entries from the maps of a list. Their bits stay.
func (s *state) delete(number uint32, entries []entry) error {
	if len(entries) == 0 {
		return nil
	}
	if err := s.begin(number); err != nil {
		return err
	}
	for _, e := range entries {
		m, err := s.Inner(outerOf(e.six), number)
		if err != nil {
			return err
		}
		if e.six {
			err = m.Delete(e.key6())
		} else {
			err = m.Delete(e.key4())
		}
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("remove %s: %w", e.netip(), err)
		}
		s.grow(number, e.six, -1)
		s.lists[number].Stale++
	}
	return nil
}

// addLengths adds the lengths of prefixes to those that packets are looked up
// by, the longest first.
func (s *state) addLengths(entries []entry) {
	var used [2][129]bool
	for _, e := range entries {
		used[family(e.six)][e.length] = true
	}
	s.setLengths(func(six bool, length int) bool {
		return used[family(six)][length] || s.hasLength(six, uint8(length))
	})
}

func family(six bool) int {
	if six {
		return 1
	}
	return 0
}

func (s *state) hasLength(six bool, length uint8) bool {
	if six {
		return slices.ContainsFunc(s.config.Lengths6[:s.config.Lengths6Count], func(l bpf.BlockLength6) bool { return l.Prefixlen == uint32(length) })
	}
	return slices.Contains(s.config.Lengths4[:s.config.Lengths4Count], length)
}

// setLengths makes those the lengths in use that are wanted, and those of addresses
// if there are domains: the first address must not have to wait for settings.
func (s *state) setLengths(wanted func(six bool, length int) bool) {
	var next bpf.BlockConfig
	domains := len(s.all()) > len(s.names())
	for length := 128; length >= 0; length-- {
		if wanted(true, length) || domains && length == 128 {
			high, low := masks(uint8(length))
			next.Lengths6[next.Lengths6Count] = bpf.BlockLength6{High: high, Low: low, Prefixlen: uint32(length)}
			next.Lengths6Count++
		}
		if length <= 32 && (wanted(false, length) || domains && length == 32) {
			next.Lengths4[next.Lengths4Count] = uint8(length)
			next.Lengths4Count++
		}
	}
	s.config.Lengths4, s.config.Lengths4Count = next.Lengths4, next.Lengths4Count
	s.config.Lengths6, s.config.Lengths6Count = next.Lengths6, next.Lengths6Count
}

// Remove implements API.
func (s *Store) Remove(ctx context.Context, r RemoveRequest) (change Change, err error) {
	err = s.write(ctx, r.DryRun, func(st *state) error {
		change, err = st.remove(ctx, r)
		return err
	})
	return change, err
}

func (s *state) remove(ctx context.Context, r RemoveRequest) (Change, error) {
	change := Change{List: r.List}
	if err := s.purge(ctx, &change, r.DryRun); err != nil {
		return Change{}, err
	}
	number, err := s.mustFind(r.List)
	if err != nil {
		return Change{}, err
	}
	entries, domains, err := s.those(ctx, number, r)
	if err != nil {
		return Change{}, err
	}
	change.Removed = uint64(len(entries) + len(domains))
	change.Unchanged = uint64(len(r.Prefixes)+len(r.Domains)) - change.Removed
	if !r.DryRun {
		if err := s.removeDomains(ctx, r.List, domains); err != nil {
			return Change{}, err
		}
		if err := s.removeEntries(ctx, number, entries); err != nil {
			return Change{}, err
		}
		change.count(s)
	}
	return s.finish(ctx, change, r.List, r.DryRun), nil
}

// those returns what there is of a request.
func (s *state) those(ctx context.Context, number uint32, r RemoveRequest) (entries []entry, domains []domain, err error) {
	for _, p := range r.Prefixes {
		e, found, err := s.lookup(number, newPrefix(p))
		if err != nil {
			return nil, nil, err
		}
		if found && !slices.Contains(entries, e) {
			entries = append(entries, e)
		}
	}
	if len(r.Domains) == 0 {
		return entries, nil, nil
	}
	known, err := s.readDomains(ctx)
	if err != nil {
		return nil, nil, err
	}
	for _, name := range r.Domains {
		if d, found := known.find(uint32(s.lists[number].Identity), name); found && !slices.Contains(domains, d) {
			domains = append(domains, d)
		}
	}
	return entries, domains, nil
}

func (s *state) removeEntries(ctx context.Context, number uint32, gone []entry) error {
	if len(gone) == 0 {
		return nil
	}
	if err := s.delete(number, gone); err != nil {
		return fault.Join(err, s.touch(number))
	}
	if err := s.touch(number); err != nil {
		return err
	}
	s.dropHits(number, gone)
	return s.tidyIfStale(ctx, number)
}

// mostStale is how many removed entries may leave bits behind, beyond a quarter
// of those that are there, before the filters are computed anew.
const mostStale = 1024

func (s *state) tidyIfStale(ctx context.Context, number uint32) error {
	list := s.lists[number]
	if list.Stale <= mostStale+(list.Entries4+list.Entries6)/4 {
		return nil
	}
	return s.tidy(ctx)
}

// dropHits forgets what was counted for entries that are gone.
func (s *state) dropHits(number uint32, gone []entry) {
	for _, e := range gone {
		_ = s.Map("hits").Delete(e.hitKey(uint32(s.lists[number].Identity))) // most were never hit
	}
}

// Set implements API.
func (s *Store) Set(ctx context.Context, r SetRequest) (change Change, err error) {
	if r.List == AllowList {
		return Change{}, fault.New(fault.ErrUsage, "list %q: it always lets packets pass", r.List)
	}
	err = s.write(ctx, r.DryRun, func(st *state) error {
		number, err := st.mustFind(r.List)
		if err != nil {
			return err
		}
		before := st.config
		st.set(number, r)
		if addresses, has := st.find(addressesOf(r.List)); has {
			st.set(addresses, r)
		}
		change = st.finish(ctx, Change{List: r.List, Changed: st.config != before}, r.List, r.DryRun)
		if r.DryRun {
			return nil
		}
		return st.saveConfig()
	})
	return change, err
}

func (s *state) set(number uint32, r SetRequest) {
	if r.Action != "" {
		setBit(&s.config.Drop, number, r.Action != Alert)
		setBit(&s.config.Alert, number, r.Action != Drop)
	}
	if r.Match != "" {
		setBit(&s.config.Source, number, r.Match != Destination)
		setBit(&s.config.Destination, number, r.Match != Source)
	}
}

// Clear implements API.
func (s *Store) Clear(ctx context.Context, list string, dryRun bool) (change Change, err error) {
	err = s.write(ctx, dryRun, func(st *state) error {
		change, err = st.clear(ctx, list, dryRun)
		if err != nil || dryRun || st.config.Lists != 0 {
			return err
		}
		return st.DropInner("settings", 0) // now nothing is left
	})
	return change, err
}

func (s *state) clear(ctx context.Context, name string, dryRun bool) (Change, error) {
	names := s.names()
	if name != "" {
		names = slices.DeleteFunc(names, func(other string) bool { return other != name })
	}
	change := Change{List: name, Changed: len(names) > 0}
	for _, name := range names {
		number, _ := s.find(name)
		change.Removed += s.lists[number].Entries4 + s.lists[number].Entries6 + s.countDomains(ctx, number)
		if dryRun {
			continue
		}
		if err := s.drop(ctx, name); err != nil {
			return Change{}, err
		}
	}
	if dryRun || !change.Changed {
		return change, nil
	}
	if err := s.dropOrphans(ctx); err != nil {
		return change, err
	}
	return change, s.tidy(ctx)
}

// drop takes a list out of force, with that of the addresses of its domains, then
// their entries away.
func (s *state) drop(ctx context.Context, name string) error {
	var numbers, identities []uint32
	for _, list := range []string{name, addressesOf(name)} {
		if number, exists := s.find(list); exists {
			numbers, identities = append(numbers, number), append(identities, uint32(s.lists[number].Identity))
			s.undefine(number)
		}
	}
	if err := s.saveConfig(); err != nil {
		return err
	}
	for _, number := range numbers {
		if err := s.discard(number); err != nil {
			return err
		}
	}
	for _, identity := range identities {
		if err := s.forgetHits(ctx, identity, func(prefix) bool { return false }); err != nil {
			return err
		}
	}
	return nil
}

// discard empties the place of a list that isn't in force.
func (s *state) discard(number uint32) error {
	for _, six := range []bool{false, true} {
		if err := s.DropInner(outerOf(six), number); err != nil {
			return err
		}
	}
	if err := s.Map("block_lists").Put(number, bpf.BlockList{}); err != nil {
		return fmt.Errorf("write map block_lists: %w", err)
	}
	return nil
}

// forgetHits deletes what was counted for entries of a list that aren't kept.
func (s *state) forgetHits(ctx context.Context, identity uint32, kept func(prefix) bool) error {
	var gone []bpf.HitKey
	err := s.eachHit(ctx, func(key bpf.HitKey, _ bpf.HitCounters) error {
		if list, p := unhit(key); list == identity && !kept(p) {
			gone = append(gone, key)
		}
		return nil
	})
	for _, key := range gone {
		_ = s.Map("hits").Delete(key)
	}
	return err
}

// Sync implements API.
func (s *Store) Sync(ctx context.Context, dryRun bool) (change Change, err error) {
	err = s.write(ctx, dryRun, func(st *state) error {
		if err := st.purge(ctx, &change, dryRun); err != nil {
			return err
		}
		change.settle()
		if dryRun || st.config.Lists == 0 {
			return nil
		}
		if err := st.mend(ctx, &change); err != nil {
			return err
		}
		return st.tidy(ctx)
	})
	if err != nil || dryRun {
		return change, err
	}
	return change, s.refresh(ctx, dueNow, &change)
}

// mend makes whole what a writer of domains left that was killed.
func (s *state) mend(ctx context.Context, change *Change) error {
	defer change.count(s)
	if err := s.dropOrphans(ctx); err != nil {
		return err
	}
	for _, name := range s.names() {
		if err := s.reconcile(ctx, name); err != nil {
			return err
		}
		number, _ := s.find(name)
		if err := s.noteDomainExpiry(ctx, number); err != nil {
			return err
		}
		if err := s.saveList(number); err != nil {
			return err
		}
	}
	return nil
}

// count takes over how many addresses of domains came and went.
func (c *Change) count(s *state) {
	c.AddressesAdded, c.AddressesRemoved = c.AddressesAdded+s.addressesAdded, c.AddressesRemoved+s.addressesRemoved
	s.addressesAdded, s.addressesRemoved = 0, 0
	c.settle()
}

// purge removes what has expired, and counts it.
func (s *state) purge(ctx context.Context, change *Change, dryRun bool) error {
	for _, name := range s.names() {
		if err := s.purgeList(ctx, name, change, dryRun); err != nil {
			return err
		}
		if err := s.purgeAddresses(ctx, name, dryRun); err != nil {
			return err
		}
	}
	change.count(s)
	return nil
}

func (s *state) purgeList(ctx context.Context, name string, change *Change, dryRun bool) error {
	number, _ := s.find(name)
	if !s.hasEnded(number) {
		return nil
	}
	all, err := s.entries(ctx, number)
	if err != nil {
		return err
	}
	known, err := s.readDomains(ctx)
	if err != nil {
		return err
	}
	var gone []domain
	for _, d := range known.of(uint32(s.lists[number].Identity)) {
		if s.isOver(entry{expires: d.Expires}) {
			gone = append(gone, d)
		}
	}
	before := len(all)
	all = slices.DeleteFunc(all, s.isOver)
	change.Expired += uint64(before - len(all) + len(gone))
	if dryRun {
		return nil
	}
	if err := s.removeDomains(ctx, name, gone); err != nil {
		return err
	}
	return s.rewrite(ctx, name, sortEntries(all))
}

// purgeAddresses removes addresses of a list's domains that have ended.
func (s *state) purgeAddresses(ctx context.Context, name string, dryRun bool) error {
	addresses, has := s.find(addressesOf(name))
	if !has || dryRun || !s.hasEnded(addresses) {
		return nil
	}
	known, err := s.readAnswers(ctx)
	if err != nil {
		return err
	}
	if err := known.deleteWhere(func(a answer) bool { return s.isOver(entry{expires: a.Expires}) }); err != nil {
		return err
	}
	return s.reconcile(ctx, name)
}

// hasEnded says whether an entry of a list has expired.
func (s *state) hasEnded(number uint32) bool {
	due := s.lists[number].Expires
	return due != 0 && due <= uint64(s.boot)
}
