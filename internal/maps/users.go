package maps

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"bpfnet/internal/bpfsys"
	"bpfnet/internal/holders"
)

// Users is the part of API that finds out how full maps are and who has them
// open: it costs more than the rest of what describes a map.
type Users interface {
	// CountEntries sets the Fill of each map by reading its entries, in batches
	// where the kernel has them. It stays nil for types without entries. Notes
	// say which maps can't be read.
	CountEntries(ctx context.Context, all []Map) (notes []string, err error)
	// FindProcesses sets the Processes of each map. Notes say what isn't known.
	FindProcesses(ctx context.Context, all []Map) (notes []string, err error)
}

// CountEntries implements API.
func (s *Store) CountEntries(ctx context.Context, all []Map) (notes []string, err error) {
	for i := range all {
		m := &all[i]
		fill, err := s.fill(ctx, m)
		switch {
		case ctx.Err() != nil:
			return notes, ctx.Err()
		case err != nil:
			notes = append(notes, fmt.Sprintf("the entries of %s can't be counted: %v", m.Ref, err))
		default:
			m.Fill = fill
		}
	}
	return notes, nil
}

// fill counts the entries of a map, nil when its type has none.
func (s *Store) fill(ctx context.Context, m *Map) (*uint64, error) {
	opened, err := s.openMap(m.Ref, true)
	if err != nil {
		return nil, err
	}
	defer opened.Close()
	h, err := newBytes(opened)
	if err != nil {
		return nil, err
	}
	h.about.Ref = m.Ref
	if h.kind.refuses != "" {
		return nil, nil
	}
	return h.count(ctx)
}

// count returns how many entries are in use; those of an array always are.
func (h *handle) count(ctx context.Context) (*uint64, error) {
	count := uint64(h.MaxEntries())
	if h.kind.fixed {
		return &count, nil
	}
	count = 0
	err := h.walk(ctx, func(_, _ []byte) error {
		count++
		return nil
	})
	return &count, err
}

// FindProcesses implements API.
func (s *Store) FindProcesses(_ context.Context, all []Map) (notes []string, err error) {
	ids := make([]uint32, len(all))
	for i, m := range all {
		ids[i] = m.ID
	}
	found, err := holders.Scan(holders.Map, ids)
	if errors.Is(err, holders.ErrIncomplete) {
		notes, err = []string{err.Error()}, nil
	}
	if err != nil {
		return nil, err
	}
	for i := range all {
		all[i].Processes = append([]holders.Process{}, found[all[i].ID]...)
	}
	return notes, nil
}

// program is a loaded program, as far as it has to do with maps.
type program struct {
	id, btfID uint32 // 0: it carries no BTF
	maps      []uint32
}

// programs lists the loaded programs by id, except those of which nothing is
// told any more; nil without the capability for that, CAP_SYS_ADMIN.
func programs() ([]program, error) {
	all := []program{}
	err := bpfsys.Programs.Each(func(id uint32, fd int) error {
		info, maps, err := bpfsys.Program(fd)
		if errors.Is(err, bpfsys.ErrDeviceGone) {
			return nil
		}
		if err == nil {
			all = append(all, program{id, info.BTFID, maps})
		}
		return err
	})
	if errors.Is(err, unix.EPERM) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list programs: %w", err)
	}
	return all, nil
}
