package codec

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/cilium/ebpf/btf"

	"bpfnet/internal/fault"
)

// The types of the tests.
var (
	u8   = &btf.Int{Name: "unsigned char", Size: 1}
	u16  = &btf.Int{Name: "unsigned short", Size: 2}
	u32  = &btf.Int{Name: "unsigned int", Size: 4}
	u64  = &btf.Int{Name: "unsigned long long", Size: 8}
	i8   = &btf.Int{Name: "signed char", Size: 1, Encoding: btf.Signed}
	i32  = &btf.Int{Name: "int", Size: 4, Encoding: btf.Signed}
	i64  = &btf.Int{Name: "long long", Size: 8, Encoding: btf.Signed}
	i128 = &btf.Int{Name: "__int128", Size: 16, Encoding: btf.Signed}
	u128 = &btf.Int{Name: "unsigned __int128", Size: 16}
	char = &btf.Int{Name: "char", Size: 1, Encoding: btf.Signed}
	flag = &btf.Int{Name: "_Bool", Size: 1, Encoding: btf.Bool}
	f32  = &btf.Float{Name: "float", Size: 4}
	f64  = &btf.Float{Name: "double", Size: 8}

	be16  = &btf.Typedef{Name: "__be16", Type: &btf.Typedef{Name: "__u16", Type: u16}}
	be32  = &btf.Typedef{Name: "__be32", Type: &btf.Typedef{Name: "__u32", Type: u32}}
	be64  = &btf.Typedef{Name: "__be64", Type: &btf.Typedef{Name: "__u64", Type: u64}}
	in4   = structOf("in_addr", 4, btf.Member{Name: "s_addr", Type: be32})
	in6   = structOf("in6_addr", 16, btf.Member{Name: "in6_u", Type: arrayOf(u8, 16)})
	ip    = &btf.Typedef{Name: "ip_addr_t", Type: in6}
	color = &btf.Enum{Name: "color", Size: 4, Values: []btf.EnumValue{{Name: "RED", Value: 0}, {Name: "GREEN", Value: 1}}}
	level = &btf.Enum{Name: "level", Size: 8, Signed: true, Values: []btf.EnumValue{{Name: "LOW", Value: ^uint64(0)}, {Name: "HIGH", Value: 1 << 62}}}

	key4     = structOf("key4", 8, btf.Member{Name: "prefixlen", Type: u32}, btf.Member{Name: "data", Type: arrayOf(u8, 4), Offset: 32})
	key6     = structOf("key6", 20, btf.Member{Name: "prefixlen", Type: u32}, btf.Member{Name: "data", Type: in6, Offset: 32})
	keyIP    = structOf("prefix", 20, btf.Member{Name: "prefixlen", Type: u32}, btf.Member{Name: "address", Type: ip, Offset: 32})
	keyPorts = structOf("ports", 8, btf.Member{Name: "prefixlen", Type: u32}, btf.Member{Name: "port", Type: u16, Offset: 32}, btf.Member{Name: "protocol", Type: u16, Offset: 48})

	limit = structOf("limit", 16,
		btf.Member{Name: "pps", Type: u64},
		btf.Member{Name: "action", Type: color, Offset: 64},
		btf.Member{Name: "pad", Type: arrayOf(u8, 4), Offset: 96})

	// struct { u32 a:3; u32 b:30 (signed); union { u32 v4; u8 bytes[4]; }; struct { be16 port; u8 mac[6]; }; }
	mixed = structOf("mixed", 20,
		btf.Member{Name: "a", Type: u32, BitfieldSize: 3},
		btf.Member{Name: "b", Type: i32, Offset: 3, BitfieldSize: 30},
		btf.Member{Type: &btf.Union{Size: 4, Members: []btf.Member{{Name: "v4", Type: u32}, {Name: "bytes", Type: arrayOf(u8, 4)}}}, Offset: 64},
		btf.Member{Type: structOf("", 8, btf.Member{Name: "port", Type: be16}, btf.Member{Name: "mac", Type: arrayOf(u8, 6), Offset: 16}), Offset: 96})

	data = &btf.Datasec{Name: ".data", Size: 8, Vars: []btf.VarSecinfo{
		{Type: &btf.Var{Name: "x", Type: u32}, Offset: 0, Size: 4},
		{Type: &btf.Var{Name: "y", Type: &btf.Volatile{Type: be16}}, Offset: 4, Size: 2}}}
)

func structOf(name string, size uint32, members ...btf.Member) *btf.Struct {
	return &btf.Struct{Name: name, Size: size, Members: members}
}

func arrayOf(t btf.Type, n uint32) *btf.Array { return &btf.Array{Index: u32, Type: t, Nelems: n} }

func codecOf(t *testing.T, typ btf.Type) *Codec {
	t.Helper()
	size, err := btf.Sizeof(typ)
	if err != nil {
		t.Fatal(err)
	}
	return New(typ, size)
}

// TestRoundTrip parses a text, and prints it again.
func TestRoundTrip(t *testing.T) {
	for _, test := range []struct {
		typ        btf.Type
		text, json string // json: "" for the text itself
	}{
		{u8, "255", ""}, {u8, "0xff", "255"}, {u8, "0b11", "3"}, {u8, "010", "10"}, {i8, "-128", ""},
		{u64, "9007199254740992", ""}, {u64, "9007199254740993", `"9007199254740993"`},
		{u64, `"18446744073709551615"`, ""}, {i64, `"-9223372036854775808"`, ""}, {i64, "-9007199254740992", ""},
		{u128, `"340282366920938463463374607431768211455"`, ""}, {i128, `"-170141183460469231731687303715884105728"`, ""}, {i128, "-1", ""},
		{u32, "hex:00000000", "0"},
		{flag, "true", ""}, {flag, "0", "false"}, {flag, "1", "true"}, {flag, "hex:07", `"hex:07"`},
		{f64, "1.5", ""}, {f32, "0.1", ""}, {f64, "1e+300", ""}, {f64, "NaN", `"NaN"`}, {f64, "-Infinity", `"-Infinity"`}, {f64, "-0", ""},
		{color, "GREEN", `"GREEN"`}, {color, "green", `"GREEN"`}, {color, "1", `"GREEN"`}, {color, "9", ""},
		{level, "LOW", `"LOW"`}, {level, "HIGH", `"HIGH"`}, {level, "-2", ""},
		{arrayOf(char, 8), "eth0", `"eth0"`}, {arrayOf(char, 4), "abcd", `"abcd"`}, {arrayOf(char, 4), `"a\"b"`, ""},
		{arrayOf(char, 4), "hex:61006200", `"hex:61006200"`}, {arrayOf(char, 2), "hex:ff00", `"hex:ff00"`},
		{arrayOf(char, 5), "hex:6865783a00", `"hex:6865783a00"`}, {arrayOf(char, 4), "{[", `"{["`}, {arrayOf(char, 4), "", `""`},
		{arrayOf(char, 4), "hex:1b5b0000", `"\u001b["`},
		{arrayOf(u16, 3), "[1,2,3]", ""}, {arrayOf(u8, 4), "[1,2,3,4]", ""}, {arrayOf(arrayOf(u8, 2), 2), "[[1,2],[3,4]]", ""},
		{be16, "80", ""}, {be32, "1", `"0.0.0.1"`}, {be32, "10.0.0.1", `"10.0.0.1"`}, {be32, "0x0a000001", `"10.0.0.1"`}, {be64, "258", ""},
		{arrayOf(be32, 2), `["10.0.0.1",1]`, `["10.0.0.1","0.0.0.1"]`},
		{in4, "10.0.0.1", `"10.0.0.1"`}, {in6, "2001:db8::1", `"2001:db8::1"`}, {in6, "::ffff:10.0.0.1", `"::ffff:10.0.0.1"`},
		{ip, "10.0.0.1", `"10.0.0.1"`}, {ip, "::ffff:10.0.0.1", `"10.0.0.1"`}, {ip, "2001:db8::1", `"2001:db8::1"`},
		{limit, `{"pps":1000,"action":"GREEN","pad":[0,0,0,0]}`, ""},
		{limit, ` {"action": 1, "pps": "1000"} `, `{"pps":1000,"action":"GREEN","pad":[0,0,0,0]}`},
		{mixed, `{"a":7,"b":-2,"v4":1,"port":443,"mac":"aa:bb:cc:dd:ee:ff"}`, `{"a":7,"b":-2,"v4":1,"bytes":[1,0,0,0],"port":443,"mac":"aa:bb:cc:dd:ee:ff"}`},
		{mixed, `{"a":0,"b":536870911,"v4":1,"bytes":[1,0,0,0],"port":1,"mac":"aa-bb-cc-dd-ee-ff"}`, `{"a":0,"b":536870911,"v4":1,"bytes":[1,0,0,0],"port":1,"mac":"aa:bb:cc:dd:ee:ff"}`},
		{mixed, `{"a":0,"b":0,"bytes":"hex:01020304","port":1,"mac":"hex:aabbccddeeff"}`, `{"a":0,"b":0,"v4":67305985,"bytes":[1,2,3,4],"port":1,"mac":"aa:bb:cc:dd:ee:ff"}`},
		{data, `{"x":1,"y":2}`, ""},
		{structOf("s", 4, btf.Member{Name: "saddr", Type: be32}), `{"saddr":"10.1.2.3"}`, ""},
		{structOf("s", 4, btf.Member{Name: "saddr", Type: be32}), `{"saddr":167838211}`, `{"saddr":"10.1.2.3"}`},
		{structOf("s", 4, btf.Member{Name: "hop", Type: be32}), `{"hop":"10.1.2.3"}`, ""},
		{structOf("s", 4, btf.Member{Name: "flow_label", Type: be32}), `{"flow_label":"0.0.1.2"}`, `{"flow_label":258}`},
		{structOf("s", 4, btf.Member{Name: "method", Type: arrayOf(u8, 4)}), `{"method":[1,2,3,4]}`, ""},
	} {
		c := codecOf(t, test.typ)
		b, err := c.Parse(test.text)
		if err != nil {
			t.Errorf("%v: parse %s: %v", test.typ, test.text, err)
			continue
		}
		want := test.json
		if want == "" {
			want = test.text
		}
		if got := string(c.Append(nil, b)); got != want {
			t.Errorf("%v: %s is printed %s, not %s", test.typ, test.text, got, want)
		}
	}
}

func TestNetworkOrder(t *testing.T) {
	for _, test := range []struct {
		typ  btf.Type
		text string
		want string
	}{
		{be16, "80", "\x00\x50"}, {be32, "1", "\x00\x00\x00\x01"}, {be64, "258", "\x00\x00\x00\x00\x00\x00\x01\x02"},
		{in4, "10.0.0.1", "\x0a\x00\x00\x01"},
		{ip, "10.0.0.1", "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\x0a\x00\x00\x01"},
	} {
		b, err := codecOf(t, test.typ).Parse(test.text)
		if err != nil || string(b) != test.want {
			t.Errorf("%v: %s is %x, %v", test.typ, test.text, b, err)
		}
	}
}

func TestPrefixes(t *testing.T) {
	for _, test := range []struct {
		typ        btf.Type
		size       int
		text, json string
	}{
		{key4, 8, "10.0.0.0/8", ""}, {key4, 8, "10.0.0.1", "10.0.0.1/32"}, {key4, 8, `{"prefixlen":8,"data":[10,0,0,0]}`, "10.0.0.0/8"},
		{key6, 20, "2001:db8::/32", ""}, {key6, 20, "::ffff:10.0.0.0/104", ""},
		{keyIP, 20, "10.0.0.0/8", ""}, {keyIP, 20, "2001:db8::/32", ""}, {keyIP, 20, "::/0", ""}, {keyIP, 20, "0.0.0.0/0", ""},
		{keyIP, 20, "::ffff:10.0.0.0/104", "10.0.0.0/8"},
		{nil, 8, "10.0.0.0/8", ""}, {nil, 20, "2001:db8::/32", ""}, {nil, 8, "hex:080000000a000000", "10.0.0.0/8"},
		{nil, 8, "hex:ff0000000a000000", "hex:ff0000000a000000"}, {nil, 7, "hex:00000000000000", ""},
	} {
		c := NewPrefix(test.typ, test.size)
		b, err := c.Parse(test.text)
		if err != nil {
			t.Errorf("%v: parse %s: %v", test.typ, test.text, err)
			continue
		}
		want := test.json
		if want == "" {
			want = test.text
		}
		if got := string(Text(c.Append(nil, b))); got != want {
			t.Errorf("%v: %s is printed %s, not %s", test.typ, test.text, got, want)
		}
	}
	ports := NewPrefix(keyPorts, 8)
	b, err := ports.Parse(`{"prefixlen":16,"port":1,"protocol":2}`)
	if got := string(ports.Append(nil, b)); err != nil || got != `{"prefixlen":16,"port":1,"protocol":2}` {
		t.Errorf("a key that is no address is printed %s, %v", got, err)
	}
}

func TestRefusals(t *testing.T) {
	for _, test := range []struct {
		typ        btf.Type
		text, want string
	}{
		{u8, "300", "300 is beyond 0..255"}, {u8, "-1", "-1 is beyond 0..255"}, {i8, "128", "128 is beyond -128..127"},
		{u8, "", "not an integer"}, {u8, "1.5", "not an integer"}, {u8, "1_0", "not an integer"}, {u8, "--1", "not an integer"}, {u8, "0x", "not an integer"},
		{u64, "18446744073709551616", "beyond"}, {u8, strings.Repeat("9", 1e6), "not an integer"},
		{u8, "hex:0102", "2 bytes, 1 needed"}, {u16, "hex:01", "is 1 byte, 2 needed"}, {u8, "hex:0", "not hexadecimal"},
		{flag, "maybe", "true|false"}, {flag, "2", "2\" is not true|false"}, {flag, "-1", "true|false"}, {color, "BLUE", "none of RED|GREEN"}, {color, "4294967296", "beyond"},
		{f32, "1e300", "not a number"}, {f64, "x", "not a number"},
		{arrayOf(char, 4), "abcde", "longer than 4 bytes"}, {arrayOf(u8, 2), "[1]", "1 element, 2 needed"}, {arrayOf(u8, 2), "[1,300]", `member "[1]": 300 is beyond`},
		{in4, "2001:db8::1", "not an IPv4 address"}, {in6, "10.0.0.1", "mapped it is ::ffff:10.0.0.1"}, {in6, "fe80::1%eth0", "not an address"}, {ip, "10.0.0", "not an address"},
		{be32, "x", `"x" is not an address: 10.0.0.1`}, {be32, "2001:db8::1", "not an IPv4 address"}, {be32, "10.0.0.256", "not an address"}, {be32, "-1", "-1 is beyond 0..4294967295"}, {be32, "", "not an address"},
		{structOf("s", 4, btf.Member{Name: "seq", Type: be32}), `{"seq":"1.2"}`, `member "seq": "1.2" is not an address`},
		{limit, `{"pps":1}`, `"action" is missing`}, {limit, `{"pps":1,"action":0,"burst":1}`, `no member is called "burst"`},
		{limit, `{"pps":-1,"action":0}`, `member "pps": -1 is beyond 0..18446744073709551615`}, {limit, `{"pps":1,"pps":2,"action":0}`, "twice"},
		{limit, `{"pps":1`, "JSON"}, {limit, `{"pps":1,"action":0} x`, "goes on"}, {limit, "5", "not a JSON object"}, {limit, `{"pps":null,"action":0}`, "null is not an integer"},
		{mixed, `{"a":8,"b":0,"v4":1,"port":1,"mac":"aa:bb:cc:dd:ee:ff"}`, `member "a": 8 is beyond 0..7`},
		{mixed, `{"a":1,"b":0,"port":1,"mac":"aa:bb:cc:dd:ee:ff"}`, `"v4" or "bytes" is missing`},
		{mixed, `{"a":1,"b":0,"v4":2,"bytes":[1,0,0,0],"port":1,"mac":"aa:bb:cc:dd:ee:ff"}`, "contradict"},
		{mixed, `{"a":1,"b":0,"v4":2,"port":1,"mac":"aa:bb"}`, `member "mac": "aa:bb" is not a MAC address`},
		{structOf("outer", 16, btf.Member{Name: "inner", Type: limit}), `{"inner":{"pps":1,"action":"X"}}`, `member "inner.action"`},
	} {
		_, err := codecOf(t, test.typ).Parse(test.text)
		if err == nil || !strings.Contains(err.Error(), test.want) || !errors.Is(err, fault.ErrUsage) {
			t.Errorf("%v: parse %.40s: error %v, want %q", test.typ, test.text, err, test.want)
		}
	}
	for _, text := range []string{"10.0.0.0/33", "10.0.0.0/-1", "10.0.0.0/", "2001:db8::/32", "5"} {
		if b, err := NewPrefix(key4, 8).Parse(text); err == nil {
			t.Errorf("prefix %s is taken as %x", text, b)
		}
	}
	if _, err := New(nil, 4).Parse("5"); err == nil || !strings.Contains(err.Error(), "hex:00000000") {
		t.Errorf("a number without a type: %v", err)
	}
}

func TestPerCPU(t *testing.T) {
	counter := structOf("counter", 24,
		btf.Member{Name: "packets", Type: u64},
		btf.Member{Name: "per", Type: arrayOf(i32, 2), Offset: 64},
		btf.Member{Type: &btf.Union{Size: 4, Members: []btf.Member{{Name: "v", Type: u32}, {Name: "w", Type: u32}}}, Offset: 128},
		btf.Member{Name: "kind", Type: color, Offset: 160})
	c := codecOf(t, counter)
	one := `{"packets":"18446744073709551615","per":[-1,2],"v":1,"w":1,"kind":"RED"}`
	b, same, err := c.ParsePerCPU(one, 24, 2)
	if err != nil || !same {
		t.Fatal(same, err)
	}
	doc, sum := c.AppendPerCPU(nil, b, 24)
	want := `{"packets":"36893488147419103230","per":[-2,4],"v":null,"w":null,"kind":null}`
	if got := string(doc[sum : len(doc)-1]); got != want {
		t.Errorf("sum %s, want %s", got, want)
	}
	if !json.Valid(doc) {
		t.Errorf("%s is no JSON", doc)
	}
	again, same, err := c.ParsePerCPU(string(doc), 24, 2)
	if err != nil || same || string(again) != string(b) {
		t.Errorf("reading %s again: %v, %v", doc, same, err)
	}
	if _, _, err := c.ParsePerCPU(string(doc), 24, 3); err == nil {
		t.Error("values for 2 CPUs are taken for 3")
	}
	signed := codecOf(t, i64)
	b, _, _ = signed.ParsePerCPU(`"-9223372036854775808"`, 8, 2)
	doc, sum = signed.AppendPerCPU(nil, b, 8)
	if got := string(doc[sum : len(doc)-1]); got != `"-18446744073709551616"` {
		t.Errorf("sum of negative numbers: %s", got)
	}
}

// TestNumberNames has names of members of type __be32, most from the kernel's
// headers.
func TestNumberNames(t *testing.T) {
	for name, want := range map[string]bool{
		"": false, "saddr": false, "ip4": false, "ipv4_dst": false, "netmask": false, "gateway": false, "s_addr": false, "id_addr": false,
		"hop": false, "srcAddr": false, "seqIP": false, "key": false, "value": false, "nexthop": false, "sip": false, "key_ip": false, "word_of_ip": false,
		"id": true, "ip_id": true, "id2": true, "flow_label": true, "ack_seq": true, "dccph_seq_low": true, "spi": true, "mark": true, "addr_len": true,
		"packet_id": true, "type_be32": true, "l4_4_bytes": true, "sin6_flowinfo": true, "checksum": true, "__pad1": true, "reserved": true, "seqNum": true, "tunnelID": true,
	} {
		if got := namesNumber(name); got != want {
			t.Errorf("%q names a number: %v", name, got)
		}
	}
}

func TestForms(t *testing.T) {
	for typ, want := range map[btf.Type]string{
		limit:            `{"pps":0..18446744073709551615,"action":RED|GREEN,"pad":[0..255, …] (4 elements)}`,
		ip:               "ADDRESS",
		arrayOf(char, 4): "TEXT (at most 4 bytes)",
	} {
		if got := codecOf(t, typ).Form(); got != want {
			t.Errorf("form %s, want %s", got, want)
		}
	}
	for typ, want := range map[btf.Type]string{
		limit: "struct limit", be32: "__be32", arrayOf(arrayOf(char, 4), 2): "char[2][4]", color: "enum color", ip: "ip_addr_t",
	} {
		if got := *codecOf(t, typ).TypeName(); got != want {
			t.Errorf("name %s, want %s", got, want)
		}
	}
	if New(nil, 4).TypeName() != nil || New(u32, 8).TypeName() != nil {
		t.Error("bytes have the name of a type")
	}
}

var fuzzTypes = []btf.Type{
	u8, u16, u32, u64, i8, i32, i64, i128, u128, flag, f32, f64, color, level, arrayOf(char, 8), arrayOf(u16, 3),
	be16, be32, be64, in4, in6, ip, key4, key6, keyIP, keyPorts, mixed, data, arrayOf(mixed, 2),
	&btf.Union{Name: "u", Size: 8, Members: []btf.Member{{Name: "f", Type: f64}, {Name: "n", Type: u64}, {Name: "c", Type: arrayOf(char, 8)}}},
}

func fuzzCodec(n uint) *Codec {
	t := fuzzTypes[n%uint(len(fuzzTypes))]
	size, _ := btf.Sizeof(t)
	if t == key4 || t == key6 || t == keyIP || t == keyPorts {
		return NewPrefix(t, size)
	}
	return New(t, size)
}

// FuzzParse: whatever the text, it is refused or means bytes that print as JSON
// that means the same, apart from padding.
func FuzzParse(f *testing.F) {
	for i := range fuzzTypes {
		for _, text := range []string{"1", "-1", "hex:00", "10.0.0.1/8", `{"a":1}`, "[1,2,3]", `"x"`, "NaN", "0x1"} {
			f.Add(uint(i), text)
		}
	}
	f.Fuzz(func(t *testing.T, n uint, text string) {
		c := fuzzCodec(n)
		b, err := c.Parse(text)
		if err != nil {
			if !errors.Is(err, fault.ErrUsage) {
				t.Fatalf("error %v is of no kind", err)
			}
			return
		}
		clearGaps(c, b) // "hex:…" fills them
		checkAgain(t, c, b)
	})
}

// FuzzDecode: whatever the bytes, they print as JSON that means them, apart
// from padding.
func FuzzDecode(f *testing.F) {
	for i := range fuzzTypes {
		f.Add(uint(i), []byte("\xff\x00\x80hex:\x1b\xff\x7f0123456789abcdef0123456789abcdef"))
		f.Add(uint(i), make([]byte, 64))
	}
	f.Fuzz(func(t *testing.T, n uint, data []byte) {
		c := fuzzCodec(n)
		b := make([]byte, c.Size())
		copy(b, data)
		clearGaps(c, b)
		checkAgain(t, c, b)
	})
}

// clearGaps clears the bits that the types of the fuzz targets leave unused.
func clearGaps(c *Codec, b []byte) {
	switch *c.name {
	case "struct mixed", "struct mixed[2]":
		for ; len(b) >= 20; b = b[20:] {
			b[4] &= 1
			clear(b[5:8])
		}
	case ".data":
		clear(b[6:])
	}
}

func checkAgain(t *testing.T, c *Codec, b []byte) {
	t.Helper()
	doc := c.Append(nil, b)
	if !json.Valid(doc) {
		t.Fatalf("%x is printed %s, which is no JSON", b, doc)
	}
	again, err := c.Parse(string(doc))
	if err != nil || string(again) != string(b) {
		t.Fatalf("%x is printed %s, which is read as %x, %v", b, doc, again, err)
	}
}

func BenchmarkAppend(b *testing.B) {
	c := New(mixed, 20)
	value := make([]byte, 20)
	var doc []byte
	b.ReportAllocs()
	for b.Loop() {
		doc = c.Append(doc[:0], value)
	}
}

// TestBounded doesn't tell the parts of a type that has billions.
func TestBounded(t *testing.T) {
	var doubling btf.Type = &btf.Int{Name: "int", Size: 4}
	for range 31 {
		doubling = &btf.Union{Size: 4, Members: []btf.Member{{Name: "a", Type: doubling}, {Name: "b", Type: doubling}}}
	}
	if doc := string(New(doubling, 4).Append(nil, []byte{1, 2, 3, 4})); doc != `"hex:01020304"` {
		t.Errorf("printed %s", doc)
	}
	endless := &btf.Struct{Name: "endless", Size: 4}
	endless.Members = []btf.Member{{Name: "inner", Type: endless}}
	if Bounded(endless) {
		t.Error("a type within itself is bounded")
	}
	long := &btf.Array{Type: &btf.Int{Name: "int", Size: 4}, Nelems: 1 << 24}
	if !Bounded(&btf.Struct{Name: "long", Size: 1 << 26, Members: []btf.Member{{Name: "all", Type: long}}}) {
		t.Error("a long array isn't bounded")
	}
}
