package netns

import (
	"errors"

	"github.com/vishvananda/netlink"
)

// attempts is how often a list is read that others change meanwhile.
const attempts = 5

// Dump calls what reads a list from the kernel, anew where it changed meanwhile. If it
// does each time, some of it may be missing, and the list isn't whole.
func Dump[T any](read func() ([]T, error)) (list []T, whole bool, err error) {
	for range attempts {
		if list, err = read(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return list, err == nil, err
		}
	}
	return list, false, nil
}
