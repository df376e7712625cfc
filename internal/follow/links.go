package follow

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"

	"github.com/vishvananda/netlink"
	vns "github.com/vishvananda/netns"

	"bpfnet/internal/netns"
)

// side is the host's side of a pair of interfaces whose other one is in another
// network namespace.
type side struct {
	name string
	peer int // number of that namespace (IFLA_LINK_NETNSID)
}

// host is what a network namespace has of them.
type host struct {
	inode uint64
	sides map[uint32]side
	all   map[uint32]bool // all interfaces
	whole bool            // nothing changed while they were read, so none is missing
}

func hostSides(path string) (h host, err error) {
	h.sides, h.all = map[uint32]side{}, map[uint32]bool{}
	var list []netlink.Link
	err = netns.Do(path, func() error {
		if h.inode, err = netns.Inode(""); err != nil {
			return err
		}
		list, h.whole, err = netns.Dump(netlink.LinkList)
		return err
	})
	if err != nil {
		return h, fmt.Errorf("read interfaces: %w", err)
	}
	for _, l := range list {
		a := l.Attrs()
		h.all[uint32(a.Index)] = true
		if a.NetNsID >= 0 && slices.Contains([]string{"veth", "netkit"}, l.Type()) {
			h.sides[uint32(a.Index)] = side{a.Name, a.NetNsID}
		}
	}
	return h, nil
}

// exists says whether there is an interface of that index.
func exists(path string, index uint32) bool {
	err := netns.Do(path, func() error {
		_, err := netlink.LinkByIndex(int(index))
		return err
	})
	return !errors.As(err, new(netlink.LinkNotFoundError))
}

// namespaceDir is where container network interfaces (CNI) have their namespaces.
const namespaceDir = "/run/netns"

// podNamespace is how those are called that engines make for Pods: "cni-" and a UUID
// by containerd, a UUID by CRI-O. Podman's begin with "netns-".
var podNamespace = regexp.MustCompile(`^(cni-)?[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// podNamespaces are the numbers that such namespaces have in the one at path.
func (h host) podNamespaces(path string) (map[int]bool, error) {
	entries, err := os.ReadDir(namespaceDir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list network namespaces: %w", err)
	}
	numbers := map[int]bool{}
	err = netns.Do(path, func() error {
		for _, e := range entries {
			if !podNamespace.MatchString(e.Name()) {
				continue
			}
			file, err := os.Open(filepath.Join(namespaceDir, e.Name()))
			if err != nil {
				continue // it has gone
			}
			if number, err := netlink.GetNetNsIdByFd(int(file.Fd())); err == nil && number >= 0 {
				numbers[number] = true
			}
			file.Close()
		}
		return nil
	})
	return numbers, err
}

// subscribe returns what the kernel tells of interfaces, as their indexes. It is
// closed where something was lost; then it can be asked for again.
func subscribe(ctx context.Context, path string) (<-chan uint32, error) {
	options := netlink.LinkSubscribeOptions{ErrorCallback: func(error) {}}
	if path != "" {
		ns, err := vns.GetFromPath(path)
		if err != nil {
			return nil, fmt.Errorf("open network namespace %q: %w", path, err)
		}
		defer ns.Close()
		options.Namespace = &ns
	}
	ctx, cancel := context.WithCancel(ctx) // closes the socket
	updates := make(chan netlink.LinkUpdate)
	if err := netlink.LinkSubscribeWithOptions(updates, ctx.Done(), options); err != nil {
		cancel()
		return nil, fmt.Errorf("subscribe to changes of interfaces: %w", err)
	}
	news := make(chan uint32, 256)
	go func() {
		defer cancel()
		defer close(news)
		for u := range updates {
			select {
			case news <- uint32(u.Index):
			case <-ctx.Done():
			}
		}
	}()
	return news, nil
}
