package blocklist

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"bpfnet/bpf"
	"bpfnet/internal/fault"
	"bpfnet/internal/maps"
)

// DefaultGrace is how long an address stays on its list after it left the
// answer of its domain.
const DefaultGrace = time.Hour

// The addresses of a list's domains are the entries of a list of their own, with
// this behind its name, which no name that users give can have.
const addressesSuffix = "*"

func addressesOf(list string) string { return list + addressesSuffix }

// domain is a domain on a list.
type domain struct {
	identity uint32 // of the list
	name     string
	bpf.BlockDomain
}

func (d domain) isWildcard() bool { return strings.HasPrefix(d.name, "*.") }

func (d domain) key() (key bpf.DomainKey) {
	key.List = d.identity
	for i := range len(d.name) {
		key.Name[i] = int8(d.name[i])
	}
	return key
}

// domains are what the map block_domains holds.
type domains struct {
	m    *ebpf.Map
	all  []domain // sorted by list and name
	last uint32   // the largest number
}

func orderDomains(a, b domain) int {
	return cmp.Or(cmp.Compare(a.identity, b.identity), strings.Compare(a.name, b.name))
}

// readDomains reads the domains of all lists.
func (s *state) readDomains(ctx context.Context) (*domains, error) {
	if s.domains != nil {
		return s.domains, nil
	}
	d := &domains{m: s.Map("block_domains")}
	err := maps.Walk(ctx, d.m, func(key, value []byte) error {
		d.all = append(d.all, domain{
			identity: binary.NativeEndian.Uint32(key), name: unix.ByteSliceToString(key[4:]), BlockDomain: unrawDomain(value),
		})
		d.last = max(d.last, d.all[len(d.all)-1].Number)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read map block_domains: %w", err)
	}
	slices.SortFunc(d.all, orderDomains)
	s.domains = d
	return d, nil
}

func unrawDomain(value []byte) bpf.BlockDomain {
	word := func(i int) uint32 { return binary.NativeEndian.Uint32(value[4*i:]) }
	return bpf.BlockDomain{
		Number: word(0), Note: word(1), Expires: word(2), Grace: word(3), Due: word(4), Checked: word(5),
		Status: bpf.DomainStatus(word(6)), Forced: word(7),
	}
}

// of returns the domains of a list.
func (d *domains) of(identity uint32) []domain {
	first, _ := slices.BinarySearchFunc(d.all, domain{identity: identity}, orderDomains)
	end, _ := slices.BinarySearchFunc(d.all, domain{identity: identity + 1}, orderDomains)
	return d.all[first:end]
}

func (d *domains) find(identity uint32, name string) (domain, bool) {
	i, found := slices.BinarySearchFunc(d.all, domain{identity: identity, name: name}, orderDomains)
	if !found {
		return domain{}, false
	}
	return d.all[i], true
}

// put writes domains; those without a number get one.
func (d *domains) put(all ...domain) error {
	known := len(d.all)
	for _, e := range all {
		if e.Number == 0 {
			d.last++
			e.Number = d.last
		}
		if err := d.m.Put(e.key(), e.BlockDomain); err != nil {
			return fmt.Errorf("add domain %s: %w", e.name, err)
		}
		if i, found := slices.BinarySearchFunc(d.all[:known], e, orderDomains); found {
			d.all[i] = e
		} else {
			d.all = append(d.all, e)
		}
	}
	if len(d.all) > known {
		slices.SortFunc(d.all, orderDomains)
	}
	return nil
}

func (d *domains) delete(gone []domain) error {
	numbers := map[uint32]bool{}
	for _, e := range gone {
		if err := d.m.Delete(e.key()); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("remove domain %s: %w", e.name, err)
		}
		numbers[e.Number] = true
	}
	d.all = slices.DeleteFunc(d.all, func(e domain) bool { return numbers[e.Number] })
	return nil
}

// wantedDomain is a domain that is to be put on a list.
type wantedDomain struct {
	name    string
	note    uint32
	expires uint32
	grace   time.Duration // 0: DefaultGrace
	forced  bool
}

// compareDomains counts what domains would change on a list, and returns those.
func (s *state) compareDomains(ctx context.Context, name string, wanted []wantedDomain, change *Change) (fresh []domain, err error) {
	if len(wanted) == 0 {
		return nil, nil
	}
	number, exists := s.find(name)
	var known *domains
	if exists {
		if known, err = s.readDomains(ctx); err != nil {
			return nil, err
		}
	}
	seen := map[string]bool{}
	for _, w := range wanted {
		if seen[w.name] {
			continue
		}
		seen[w.name] = true
		next := domain{name: w.name}
		next.Note, next.Expires, next.Grace = w.note, w.expires, uint32(cmp.Or(w.grace, DefaultGrace)/time.Second)
		if w.forced {
			next.Forced = 1
		}
		found := false
		if exists {
			var old domain
			next.identity = uint32(s.lists[number].Identity)
			if old, found = known.find(next.identity, w.name); found {
				next.Number, next.Due, next.Checked, next.Status = old.Number, old.Due, old.Checked, old.Status
			}
			if found && next == old {
				change.Unchanged++
				continue
			}
		}
		if found {
			change.Updated++
		} else {
			change.Added++
		}
		fresh = append(fresh, next)
	}
	return fresh, nil
}

// hasRoomFor refuses domains that find no room on a list, before anything is changed.
func (s *state) hasRoomFor(ctx context.Context, name string, fresh, gone []domain) error {
	if len(fresh) == 0 || s.Shared == nil {
		return nil
	}
	lists := len(s.all())
	for _, list := range []string{name, addressesOf(name)} {
		if _, exists := s.find(list); !exists {
			lists++
		}
	}
	if lists > mostLists {
		return tooManyLists()
	}
	known, err := s.readDomains(ctx)
	if err != nil {
		return err
	}
	after := -len(gone)
	for _, list := range s.names() {
		number, _ := s.find(list)
		after += len(known.of(uint32(s.lists[number].Identity)))
	}
	for _, d := range fresh {
		if d.Number == 0 {
			after++
		}
	}
	if most := int(known.m.MaxEntries()); after > most {
		return fault.New(fault.ErrConflict, "there would be %d domains, and there can be %d", after, most)
	}
	return nil
}

// putDomains writes domains to a list, which is made if it isn't there, with a
// list for their addresses.
func (s *state) putDomains(ctx context.Context, name string, fresh []domain) error {
	if len(fresh) == 0 {
		return nil
	}
	for _, list := range []string{name, addressesOf(name)} {
		if _, exists := s.find(list); exists {
			continue
		}
		if err := s.rewrite(ctx, list, nil); err != nil {
			return err
		}
	}
	if err := s.dropOrphans(ctx); err != nil { // they take room
		return err
	}
	known, err := s.readDomains(ctx)
	if err != nil {
		return err
	}
	number, _ := s.find(name)
	var before []domain
	for i := range fresh {
		fresh[i].identity = uint32(s.lists[number].Identity)
		old, _ := known.find(fresh[i].identity, fresh[i].name)
		before = append(before, old)
	}
	if err := known.put(fresh...); err != nil {
		return err
	}
	if err := s.moveEnds(ctx, name, before, fresh); err != nil {
		return err
	}
	if err := s.noteDomainExpiry(ctx, number); err != nil {
		return err
	}
	return s.touch(number)
}

// countDomains is how many domains a list has; 0 if they can't be read.
func (s *state) countDomains(ctx context.Context, number uint32) uint64 {
	if _, has := s.find(addressesOf(nameOf(s.lists[number]))); !has {
		return 0
	}
	known, err := s.readDomains(ctx)
	if err != nil {
		return 0
	}
	return uint64(len(known.of(uint32(s.lists[number].Identity))))
}

// noteDomainExpiry remembers when the next domain of a list ends.
func (s *state) noteDomainExpiry(ctx context.Context, number uint32) error {
	list := &s.lists[number]
	known, err := s.readDomains(ctx)
	if err != nil {
		return err
	}
	if strings.HasSuffix(nameOf(*list), addressesSuffix) {
		return nil
	}
	for _, d := range known.of(uint32(list.Identity)) {
		if d.Expires != 0 && (list.Expires == 0 || uint64(d.Expires) < list.Expires) {
			list.Expires = uint64(d.Expires)
		}
	}
	return nil
}

// removeDomains takes domains and their addresses off a list.
func (s *state) removeDomains(ctx context.Context, name string, gone []domain) error {
	if len(gone) == 0 {
		return nil
	}
	known, err := s.readDomains(ctx)
	if err != nil {
		return err
	}
	answers, err := s.readAnswers(ctx)
	if err != nil {
		return err
	}
	for i := range gone { // those that a kill leaves without addresses are asked for again
		gone[i].Due, gone[i].Status = 0, bpf.DomainPending
	}
	if err := known.put(gone...); err != nil {
		return err
	}
	if err := answers.deleteOf(gone); err != nil {
		return err
	}
	if err := s.reconcile(ctx, name); err != nil {
		return err
	}
	return known.delete(gone)
}

// dropOrphans deletes domains of lists that aren't there, and answers of domains
// that aren't: a writer that was killed left them. Answers that have ended go, too.
func (s *state) dropOrphans(ctx context.Context) error {
	known, err := s.readDomains(ctx)
	if err != nil {
		return err
	}
	identities, numbers := map[uint32]bool{}, map[uint32]bool{}
	for _, name := range s.names() {
		number, _ := s.find(name)
		identities[uint32(s.lists[number].Identity)] = true
	}
	var gone []domain
	for _, d := range known.all {
		if !identities[d.identity] {
			gone = append(gone, d)
			continue
		}
		numbers[d.Number] = true
	}
	if err := known.delete(gone); err != nil {
		return err
	}
	answers, err := s.readAnswers(ctx)
	if err != nil {
		return err
	}
	return answers.deleteWhere(func(a answer) bool { return !numbers[a.domain] || s.isOver(entry{expires: a.Expires}) })
}
