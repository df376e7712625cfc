package datapath

import (
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"bpfnet/pinned"
)

// memory is what was read of pinned links, for who reads them again and again: of
// thousands, opening the pins takes most of the time.
type memory struct {
	mu    sync.Mutex
	links map[string]map[string]knownLink // by instance and pin
}

// knownLink is a link as it was read.
type knownLink struct {
	inode uint64 // of its pin, which holds the same link as long as it is there
	doc   Attachment
}

// of returns what is known of an instance. It is not to be changed.
func (m *memory) of(instance string) map[string]knownLink {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.links[instance]
}

// set replaces what is known of an instance.
func (m *memory) set(instance string, links map[string]knownLink) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.links == nil {
		m.links = map[string]map[string]knownLink{}
	}
	m.links[instance] = links
}

// retain forgets all instances but some.
func (m *memory) retain(instances []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	maps.DeleteFunc(m.links, func(name string, _ map[string]knownLink) bool { return !slices.Contains(instances, name) })
}

// again describes a link that is known by what the kernel says now. ok is false if its
// pin must be read: it is another one, the link isn't at tc, or its interface has gone
// or moved away. Ids of links aren't used again, so one that is on its hook is on the
// same interface as before.
func (k knownLink) again(pin pinned.Object, here uint64, name nameOf) (doc Attachment, ok bool) {
	doc = k.doc
	if k.inode != pin.Inode || doc.LinkID == nil || doc.IfIndex == nil || hookGroup(doc.Hook) != "tc" || *doc.NetNS != here {
		return doc, false
	}
	order, err := link.QueryPrograms(link.QueryOptions{Target: int(*doc.IfIndex), Attach: tcxAttach(doc.Hook)})
	if err != nil {
		return doc, false
	}
	for _, p := range order.Programs {
		if id, hasLink := p.LinkID(); hasLink && uint32(id) == *doc.LinkID {
			doc.DevName, err = name(*doc.IfIndex)
			doc.ProgID, doc.Defunct, doc.Notes = ObjectID(p.ID), false, []string{}
			return doc, err == nil
		}
	}
	return doc, false
}

// nameOf names an interface of this namespace.
type nameOf func(index uint32) (*string, error)

// nameOnce returns what names interfaces, each once, until done is called.
func nameOnce() (name nameOf, done func(), err error) {
	socket, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("open a socket: %w", err)
	}
	known := map[uint32]*string{}
	return func(index uint32) (*string, error) {
		if name := known[index]; name != nil {
			return name, nil
		}
		request, err := unix.NewIfreq("")
		if err != nil {
			return nil, err
		}
		request.SetUint32(index)
		if err := unix.IoctlIfreq(socket, unix.SIOCGIFNAME, request); err != nil {
			return nil, err
		}
		known[index] = ptr(request.Name())
		return known[index], nil
	}, func() { unix.Close(socket) }, nil
}
