package maps

import (
	"context"
	"errors"
)

// Store is the kernel's maps. The zero value isn't usable; see New.
type Store struct{ root string }

var _ API = (*Store)(nil)

// New returns the store whose "NAME/MAP" references are resolved below root, a
// directory in bpffs. It doesn't touch the kernel.
func New(root string) *Store { return &Store{root: root} }

var errTODO = errors.New("not written yet")

func (s *Store) List(context.Context) (Listing, error)              { return Listing{}, errTODO }
func (s *Store) Show(context.Context, string) (Map, error)          { return Map{}, errTODO }
func (s *Store) Get(context.Context, string, string) (Entry, error) { return Entry{}, errTODO }
func (s *Store) Set(context.Context, SetRequest) (Change, error)    { return Change{}, errTODO }
func (s *Store) Delete(context.Context, DeleteRequest) (Change, error) {
	return Change{}, errTODO
}
func (s *Store) Dump(context.Context, DumpRequest, func(Row) error) (Dumped, error) {
	return Dumped{}, errTODO
}
func (s *Store) Pinned() ([]string, error) { return nil, errTODO }
