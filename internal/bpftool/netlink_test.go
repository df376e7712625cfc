package bpftool

import (
	"testing"

	"github.com/vishvananda/netlink/nl"
)

// FuzzAttributes: attributes that are cut or lie about their lengths are left
// out.
func FuzzAttributes(f *testing.F) {
	program := nl.NewRtAttr(tcaBPFID, nl.Uint32Attr(7))
	action := nl.NewRtAttr(1, nil)
	action.AddRtAttr(tcaActKind, nl.ZeroTerminated("bpf"))
	options := action.AddRtAttr(tcaActOptions, nil)
	options.AddRtAttr(tcaActBPFParms, make([]byte, 20))
	options.AddRtAttr(tcaActBPFName, nl.ZeroTerminated("name"))
	options.AddRtAttr(tcaActBPFID, nl.Uint32Attr(9))
	attached := nl.NewRtAttr(iflaXDPAttached, []byte{xdpAttachedMulti})
	for _, seed := range [][]byte{program.Serialize(), action.Serialize(), attached.Serialize(), {4, 0, 0, 0}, {3, 0, 1, 0}, {0xff, 0xff, 1, 0, 1}, {}} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, message []byte) {
		total := 0
		tb := attributes(message)
		for kind, value := range tb {
			total += len(value)
			_ = attrU32(value)
			if name := text(value); len(name) > len(value) {
				t.Errorf("attribute %d is called %q", kind, name)
			}
		}
		if total > len(message) {
			t.Errorf("%d bytes of attributes in %d", total, len(message))
		}
		_ = xdpPrograms(tb)
		if message != nil && readActions(message) == nil {
			t.Errorf("a list of actions is none")
		}
	})
}
