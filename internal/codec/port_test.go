package codec

import (
	"testing"

	"github.com/cilium/ebpf/btf"
)

func TestPorts(t *testing.T) {
	u8, u16 := &btf.Int{Name: "unsigned char", Size: 1}, &btf.Int{Name: "unsigned short", Size: 2}
	be16 := &btf.Typedef{Name: "__be16", Type: u16}
	key := &btf.Struct{Name: "port_key", Size: 4, Members: []btf.Member{
		{Name: "dst_port", Type: be16}, {Name: "protocol", Type: u8, Offset: 16}, {Name: "pad", Type: u8, Offset: 24},
	}}
	c := New(key, 4)
	for text, raw := range map[string]string{
		`"80/tcp"`: "\x00\x50\x06\x00", `"53/udp"`: "\x00\x35\x11\x00",
		`{"dst_port":80,"protocol":47,"pad":0}`: "\x00\x50\x2f\x00", `{"dst_port":80,"protocol":6,"pad":1}`: "\x00\x50\x06\x01",
	} {
		if got := string(c.Append(nil, []byte(raw))); got != text {
			t.Errorf("%x is %s, want %s", raw, got, text)
		}
		if b, err := c.Parse(text); err != nil || string(b) != raw {
			t.Errorf("parse %s: %x, %v", text, b, err)
		}
	}
	if b, err := c.Parse(`{"dst_port":80,"protocol":6}`); err != nil || string(b) != "\x00\x50\x06\x00" {
		t.Errorf("parse an object: %x, %v", b, err)
	}
	for _, text := range []string{"80", "80/tcpx", "x/tcp", "65536/tcp", "/tcp"} {
		if b, err := c.Parse(text); err == nil {
			t.Errorf("%s is taken as %x", text, b)
		}
	}
	if !c.HasNetworkOrder() {
		t.Error("the port isn't in network order")
	}
	if c.Form() != "80/tcp" {
		t.Errorf("form %s", c.Form())
	}
	outer := New(&btf.Struct{Name: "flow", Size: 8, Members: []btf.Member{{Name: "bytes", Type: &btf.Int{Size: 4}}, {Type: key, Offset: 32}}}, 8)
	if got := string(outer.Append(nil, []byte("\x00\x00\x00\x00\x00\x50\x06\x00"))); got != `{"bytes":0,"dst_port":80,"protocol":6,"pad":0}` {
		t.Errorf("an anonymous member is %s", got)
	}
	for _, other := range []*btf.Struct{
		{Size: 3, Members: []btf.Member{{Name: "port", Type: u16}, {Name: "flags", Type: u8, Offset: 16}}},
		{Size: 5, Members: []btf.Member{{Name: "sport", Type: u16}, {Name: "dport", Type: u16, Offset: 16}, {Name: "proto", Type: u8, Offset: 32}}},
		{Size: 2, Members: []btf.Member{{Name: "port", Type: u16}}},
	} {
		if form := New(other, int(other.Size)).Form(); form == "80/tcp" {
			t.Errorf("%v is taken for a port", other.Members)
		}
	}
}
