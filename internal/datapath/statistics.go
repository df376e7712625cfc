package datapath

import (
	"encoding/binary"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"bpfnet/internal/netns"
)

// InterfaceBytes is what the kernel has counted at interfaces.
type InterfaceBytes struct {
	NetNS uint64            // inode of their namespace, the engine's
	Bytes map[uint32]uint64 // by index: received and sent, link-layer headers included
}

// The message that RTM_GETSTATS takes and answers with (struct if_stats_msg in
// linux/if_link.h), and where bytes are in its struct rtnl_link_stats64.
const (
	statsMessage = 12
	statsIndex   = 4
	statsFilter  = 8
	rxBytes      = 2 * 8
	txBytes      = 3 * 8
)

// InterfaceBytes reads what the interfaces of the engine's namespace have counted: of
// all at once, and without the rest of what there is to know of them.
func (e *Engine) InterfaceBytes() (InterfaceBytes, error) {
	all := InterfaceBytes{Bytes: map[uint32]uint64{}}
	err := netns.Do(e.netns, func() (err error) {
		if all.NetNS, err = netns.Inode(""); err != nil {
			return err
		}
		messages, _, err := netns.Dump(func() ([][]byte, error) {
			message := make([]byte, statsMessage)
			binary.NativeEndian.PutUint32(message[statsFilter:], 1<<(unix.IFLA_STATS_LINK_64-1))
			req := nl.NewNetlinkRequest(unix.RTM_GETSTATS, unix.NLM_F_DUMP)
			req.AddRawData(message)
			return req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWSTATS)
		})
		for _, m := range messages {
			readStatistics(m, all.Bytes)
		}
		return err
	})
	if err != nil {
		return InterfaceBytes{}, fmt.Errorf("read counters of interfaces: %w", err)
	}
	return all, nil
}

func readStatistics(message []byte, bytes map[uint32]uint64) {
	if len(message) < statsMessage {
		return
	}
	attributes, err := nl.ParseRouteAttr(message[statsMessage:])
	if err != nil {
		return
	}
	for _, a := range attributes {
		if a.Attr.Type == unix.IFLA_STATS_LINK_64 && len(a.Value) >= txBytes+8 {
			field := binary.NativeEndian.Uint64
			bytes[binary.NativeEndian.Uint32(message[statsIndex:])] = field(a.Value[rxBytes:]) + field(a.Value[txBytes:])
		}
	}
}

// InterfaceKinds returns the kinds of interfaces of the engine's namespace as ip-link(8)
// has them, "device" for hardware, and leaves out those that can't be looked up.
func (e *Engine) InterfaceKinds(indexes []uint32) (map[uint32]string, error) {
	kinds := map[uint32]string{}
	err := netns.Do(e.netns, func() error {
		for _, index := range indexes {
			if l, err := netlink.LinkByIndex(int(index)); err == nil {
				kinds[index] = l.Type()
			}
		}
		return nil
	})
	return kinds, err
}
