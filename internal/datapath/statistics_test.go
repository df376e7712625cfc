package datapath

import (
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"bpfnet/internal/netns"
)

// InterfaceBytes has what other ways of reading have, of the engine's namespace.
func TestInterfaceBytes(t *testing.T) {
	e, nsA, nsB := setup(t)
	send(t, nsB, "10.77.0.1:9", 10, 1000)
	var want netlink.Link
	for range 1000 { // datagrams wait for the neighbour's answer
		err := netns.Do(nsA, func() (err error) { want, err = netlink.LinkByName("a"); return err })
		if err != nil {
			t.Fatal(err)
		}
		if want.Attrs().Statistics.RxBytes >= 10*1000 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	index := uint32(want.Attrs().Index)
	got, err := e.InterfaceBytes()
	if err != nil {
		t.Fatal(err)
	}
	inode, err := netns.Inode(nsA)
	if err != nil || got.NetNS != inode || len(got.Bytes) < 2 {
		t.Errorf("%+v, %v", got, err)
	}
	// Answers to the datagrams, and what IPv6 sends by itself, may come in between.
	if s := want.Attrs().Statistics; got.Bytes[index] < s.RxBytes+s.TxBytes || s.RxBytes < 10*1000 {
		t.Errorf("%d bytes, %+v", got.Bytes[index], s)
	}
	kinds, err := e.InterfaceKinds([]uint32{index, 1, 4711})
	if err != nil || len(kinds) != 2 || kinds[index] != "veth" || kinds[1] != "device" {
		t.Errorf("%v, %v", kinds, err)
	}
}

func TestDamagedStatistics(t *testing.T) {
	bytes := map[uint32]uint64{}
	for _, message := range [][]byte{nil, make([]byte, 11), make([]byte, 12), make([]byte, 15), append(make([]byte, 12), 8, 0, 1, 0, 1, 2, 3, 4), append(make([]byte, 12), 255, 0, 1, 0)} {
		readStatistics(message, bytes)
	}
	if len(bytes) != 0 {
		t.Error(bytes)
	}
}
