package maps

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/cilium/ebpf"

	"bpfnet/internal/codec"
	"bpfnet/internal/fault"
)

// Importer writes many entries at once.
type Importer interface {
	// Import reads the whole input before it changes anything: an input that is
	// wrong anywhere is of kind fault.ErrUsage and changes nothing. When the
	// kernel refuses some of the entries, the others are in the map, and the
	// error is of kind fault.ErrPartial. With that error, and with one of
	// context.Canceled, the answer says what was done.
	Import(ctx context.Context, request ImportRequest) (Imported, error)
}

// ImportRequest says what to read, and into which map.
type ImportRequest struct {
	Map     string
	Source  string // what the input is called; CSV if it ends in .csv
	Input   io.Reader
	Replace bool // remove what the input doesn't have
	DryRun  bool
}

// Imported is what an import did, or with DryRun would do. Except for Entries,
// it counts keys.
type Imported struct {
	Changed   bool           `json:"changed"`
	Map       string         `json:"map"`
	MapID     uint32         `json:"map_id"`
	Source    string         `json:"source"`
	Entries   uint64         `json:"entries"` // read
	Added     uint64         `json:"added"`
	Updated   uint64         `json:"updated"`
	Unchanged uint64         `json:"unchanged"`
	Deleted   uint64         `json:"deleted"` // of arrays: set to zero
	Refused   uint64         `json:"refused"`
	Errors    []RefusedEntry `json:"errors"` // why the kernel refused: the first of them
	Notes     []string       `json:"-"`
}

// RefusedEntry is a change that the kernel refused. Line and Column are null for
// an entry that the input doesn't have.
type RefusedEntry struct {
	Line    *uint32         `json:"line"`
	Column  *uint32         `json:"column"`
	Key     json.RawMessage `json:"key"`
	Message string          `json:"message"`
}

// refusedMost is how many refusals are told one by one.
const refusedMost = 1000

// importer is one import.
type importer struct {
	*handle
	store   *Store
	request ImportRequest
	done    Imported

	table   *table
	surplus []byte            // keys that only the map has, one after the other
	objects map[string]uint32 // ids by the text that names them

	key, value []byte // of the entry that is being read
	problems   problems
	tooMany    bool  // the input has more keys than the map has room for
	denied     error // the kernel lets nothing be written any more
}

// Import implements Importer.
func (s *Store) Import(ctx context.Context, r ImportRequest) (Imported, error) {
	h, err := s.open(r.Map, false)
	if err != nil {
		return Imported{}, err
	}
	defer h.Close()
	if err := h.importable(); err != nil {
		return Imported{}, err
	}
	im := s.newImporter(h, r)
	if err := im.read(ctx); err != nil {
		return Imported{}, err
	}
	if err := im.compare(ctx); err != nil {
		return Imported{}, err
	}
	if r.DryRun {
		im.plan()
		return im.done, nil
	}
	err = im.write(ctx)
	return im.done, err
}

func (s *Store) newImporter(h *handle, r ImportRequest) *importer {
	valueSize := h.stride * h.cpus
	return &importer{
		handle: h, store: s, request: r,
		done:    Imported{Map: h.about.Ref, MapID: h.about.ID, Source: r.Source, Errors: []RefusedEntry{}, Notes: h.notes},
		table:   newTable(int(h.KeySize()), valueSize),
		objects: map[string]uint32{},
		key:     make([]byte, h.KeySize()), value: make([]byte, valueSize),
		problems: problems{source: r.Source},
	}
}

// importable refuses maps that user space can't write.
func (h *handle) importable() error {
	if err := h.writable(); err != nil {
		return err
	}
	if h.kind.sockets {
		return fault.New(fault.ErrUnsupported, "import into map %s: only the process that has a socket open can put it into %s", h.about.Ref, h.kind.a())
	}
	switch h.Type() {
	case ebpf.StackTrace, ebpf.StructOpsMap, ebpf.CGroupStorage, ebpf.PerCPUCGroupStorage:
		return fault.New(fault.ErrUnsupported, "import into map %s: %s takes no entries from outside of the kernel", h.about.Ref, h.kind.a())
	}
	return nil
}

// problems collects what is wrong with an input.
type problems struct {
	source string
	first  []string
	count  int
}

// problemsMost is how many problems are shown.
const problemsMost = 20

func (p *problems) add(at place, err error) {
	p.count++
	if len(p.first) < problemsMost {
		p.first = append(p.first, fmt.Sprintf("%s:%d:%d: %v", p.source, at.line, at.column, err))
	}
}

// err is nil when there was no problem.
func (p *problems) err(ref string) error {
	if p.count == 0 {
		return nil
	}
	if p.count == 1 {
		return fault.New(fault.ErrUsage, "import into map %s: nothing was changed: %s", ref, p.first[0])
	}
	err := fault.New(fault.ErrUsage, "import into map %s: nothing was changed, %d errors: %s", ref, p.count, p.first[0])
	for _, problem := range p.first[1:] {
		err.Hint("%s", problem)
	}
	if more := p.count - len(p.first); more > 0 {
		err.Hint("%d more", more)
	}
	return err
}

// read fills the table from the input and refuses it if anything is wrong.
func (im *importer) read(ctx context.Context) error {
	explicit, err := im.readInput(ctx)
	if err != nil {
		return err
	}
	if err := im.problems.err(im.about.Ref); err != nil {
		return err
	}
	switch {
	case im.tooMany:
		return fault.New(fault.ErrConflict, "import into map %s: nothing was changed: %s has more keys than the %d that fit", im.about.Ref, im.request.Source, im.MaxEntries()).
			Hint("%s", im.handle.makeRoom())
	case im.request.Replace && !explicit && im.done.Entries == 0:
		return fault.New(fault.ErrUsage, "import into map %s: nothing was changed: %s is empty", im.about.Ref, im.request.Source).
			Hint("bpfnet map clear %s removes all entries; so does an empty JSON array", im.about.Ref)
	}
	return nil
}

// entry takes over the entry in im.key and im.value, whose key stands at at.
func (im *importer) entry(at place) {
	im.done.Entries++
	if err := im.checkKey(); err != nil {
		im.problems.add(at, err)
		return
	}
	if i := im.table.find(im.key); i >= 0 {
		if !bytes.Equal(im.table.value(i), im.value) {
			im.problems.add(at, fmt.Errorf("key %s has another value on line %d", codec.Text(im.keyJSON(im.key)), im.table.place(i).line))
		}
		return
	}
	if im.table.count == int(im.MaxEntries()) {
		im.tooMany = true
		return
	}
	im.table.add(im.key, im.value, at)
}

// checkKey refuses keys that no map of this size or type has, and writes those
// of an LPM trie as the kernel does.
func (im *importer) checkKey() error {
	switch {
	case im.kind.indexed && len(im.key) == 4:
		if index := prefixLength(im.key); index >= im.MaxEntries() {
			return fmt.Errorf("key %d is beyond the end: keys are 0..%d", index, im.MaxEntries()-1)
		}
	case im.Type() == ebpf.LPMTrie:
		if err := checkPrefix(im.key); err != nil {
			return err
		}
		masked(im.key)
	}
	return nil
}

// compare finds out which entries differ from those of the map.
func (im *importer) compare(ctx context.Context) error {
	const few = 16
	slow := im.Type() == ebpf.LPMTrie && !nextIsExact() // each lookup would read all of it
	if !im.request.Replace && !slow && im.table.count < int(im.MaxEntries())/few {
		return im.compareEach(ctx)
	}
	return im.walk(ctx, func(key, value []byte) error {
		if im.Type() == ebpf.LPMTrie {
			masked(key) // one prefix, whatever bits follow it
		}
		if i := im.table.find(key); i >= 0 {
			im.setStored(i, value)
		} else if im.request.Replace && im.removable(value) {
			im.surplus = append(im.surplus, key...)
		}
		return nil
	})
}

// compareEach looks each entry up, which is faster than reading a map that has
// many more.
func (im *importer) compareEach(ctx context.Context) error {
	for i := range im.table.count {
		if err := ctx.Err(); err != nil {
			return err
		}
		value, err := im.stored(im.table.key(i))
		if err != nil {
			return err
		}
		if value != nil {
			im.setStored(i, value)
		}
	}
	return nil
}

// setStored notes that the map has a value for entry i.
func (im *importer) setStored(i int, value []byte) {
	im.table.setState(i, toUpdate)
	if im.sameValue(value, im.table.value(i)) {
		im.table.setState(i, unchanged)
	}
}

// sameValue compares two values, of which what lies between those of two CPUs
// means nothing.
func (h *handle) sameValue(a, b []byte) bool {
	size := len(a) / h.cpus
	if h.kind.perCPU {
		size = int(h.ValueSize())
	}
	for at := 0; at < len(a); at += h.stride {
		if !bytes.Equal(a[at:at+size], b[at:at+size]) {
			return false
		}
	}
	return true
}

// removable says whether removing an entry changes anything: entries that are
// always there are set to zero.
func (h *handle) removable(value []byte) bool {
	return !h.kind.fixed || !h.sameValue(value, make([]byte, len(value)))
}

// plan counts what write would do.
func (im *importer) plan() {
	for i := range im.table.count {
		switch im.table.state(i) {
		case toAdd:
			im.table.setState(i, added)
		case toUpdate:
			im.table.setState(i, updated)
		}
	}
	im.done.Deleted = uint64(im.surplusCount())
	im.sum()
}

// sum counts the entries by what was done with them.
func (im *importer) sum() {
	counts := map[state]*uint64{
		added: &im.done.Added, updated: &im.done.Updated, unchanged: &im.done.Unchanged,
	}
	for i := range im.table.count {
		if count := counts[im.table.state(i)]; count != nil {
			*count++
		}
	}
	im.done.Changed = im.done.Added+im.done.Updated+im.done.Deleted > 0
}

// write makes the changes.
func (im *importer) write(ctx context.Context) error {
	err := im.writeAll(ctx)
	im.sum()
	switch {
	case errors.Is(err, context.Canceled):
		made := im.done.Added + im.done.Updated + im.done.Deleted
		return fault.New(context.Canceled, "import into map %s: %w", im.about.Ref, err).
			Hint("%d of %d changes were made; the same import again makes the rest", made, im.changes())
	case err != nil:
		return err
	case im.done.Refused > 0:
		return fault.New(fault.ErrPartial, "import into map %s: the kernel refused %d of %d changes: %s", im.about.Ref, im.done.Refused, im.changes(), im.done.Errors[0].Message)
	}
	return nil
}

func (im *importer) surplusCount() int { return len(im.surplus) / len(im.key) }

// changes is how many there are to make.
func (im *importer) changes() uint64 {
	return uint64(im.table.count+im.surplusCount()) - im.done.Unchanged
}

// writeAll updates before it deletes, so that no reader misses an entry, unless
// there is room only after deleting.
func (im *importer) writeAll(ctx context.Context) error {
	steps := []func(context.Context) error{im.writeTable, im.removeSurplus}
	if !im.roomBefore() {
		steps[0], steps[1] = steps[1], steps[0]
	}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// roomBefore says whether all that is to be added fits beside what is to be
// deleted.
func (im *importer) roomBefore() bool {
	return im.kind.indexed || im.table.count+im.surplusCount() <= int(im.MaxEntries())
}
