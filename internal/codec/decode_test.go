package codec

import (
	"encoding/json"
	"errors"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"bpfnet/internal/fault"
)

// plain turns a decoded value into what encoding/json makes of it.
func plain(v any) any {
	switch v := v.(type) {
	case object:
		m := map[string]any{}
		for _, member := range v {
			m[member.name] = plain(member.value)
		}
		return m
	case []any:
		list := make([]any, len(v))
		for i := range v {
			list[i] = plain(v[i])
		}
		return list
	}
	return v
}

// FuzzDecoder compares the decoder with encoding/json.
func FuzzDecoder(f *testing.F) {
	for _, seed := range []string{`{"a":[1,-2.5e+3,"x\u00e4\n"],"b":{},"c":[],"d":null,"e":true}`, `[0,01]`, `"\ud800"`, "\"\xff\"", `-`, `1.`, `tru`, `{"a":1,"a":2}`, ` [ ] `} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		v, err := decodeJSON(text)
		var want any
		d := json.NewDecoder(strings.NewReader(text))
		d.UseNumber()
		wantErr := d.Decode(&want)
		valid := json.Valid([]byte(text))
		switch {
		case err == nil && (!valid || wantErr != nil):
			t.Fatalf("%q is no JSON", text)
		case err == nil && !reflect.DeepEqual(plain(v), want):
			t.Fatalf("%q is %v, not %v", text, plain(v), want)
		case err != nil && valid && !strings.Contains(err.Error(), "twice") && !strings.Contains(err.Error(), "UTF-8") && !strings.Contains(err.Error(), "nested"):
			t.Fatalf("%q: %v", text, err)
		case err == nil:
			checkDecoder(t, text)
		}
	})
}

// checkDecoder checks that Skip ends where Value does, and that whatever is cut
// off is missed.
func checkDecoder(t *testing.T, text string) {
	t.Helper()
	read, skipped := Decoder{Text: text}, Decoder{Text: text}
	if _, err := read.Value(); err != nil {
		t.Fatal(err)
	}
	if err := skipped.Skip(); err != nil || skipped.Pos != read.Pos {
		t.Fatalf("%q: skipped to %d, read to %d, %v", text, skipped.Pos, read.Pos, err)
	}
	const long = 500
	if c := strings.TrimSpace(text)[0]; len(text) > long || c != '{' && c != '[' && c != '"' {
		return // a number's beginning is a number
	}
	for end := range read.Pos {
		cut := Decoder{Text: text[:end]}
		_, err := cut.Value()
		var syntax *SyntaxError
		if !errors.As(err, &syntax) {
			t.Fatalf("%q cut to %q: %v", text, text[:end], err)
		}
		if !syntax.Short && !strings.Contains(syntax.Message, "UTF-8") {
			t.Fatalf("%q cut to %q: %v isn't short", text, text[:end], err)
		}
	}
}

func TestLocate(t *testing.T) {
	const text = `{"a":1, "b": {"c": [ {"d":5}, [6, 7] ]}}`
	for path, want := range map[string]string{"": text, "a": "1,", "b.c": "[ {", "b.c[0].d": "5}", "b.c[1][1]": "7]", "b.x": `{"c"`, "b.c[7]": "[ {", "[0]": text} {
		d := Decoder{Text: text}
		d.Locate(path)
		if !strings.HasPrefix(text[d.Pos:], want) {
			t.Errorf("%q is at %q", path, text[d.Pos:])
		}
	}
}

func TestNesting(t *testing.T) {
	for depth, ok := range map[int]bool{nestedMost: true, nestedMost + 1: false} {
		if _, err := decodeJSON(strings.Repeat("[", depth) + strings.Repeat("]", depth)); (err == nil) != ok {
			t.Errorf("%d deep: %v", depth, err)
		}
	}
}

func jsonOf(t *testing.T, text string) JSON {
	t.Helper()
	d := Decoder{Text: text}
	v, err := d.Value()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// TestParseJSON reads values in bpfnet's words and in bpftool's.
func TestParseJSON(t *testing.T) {
	for _, test := range []struct {
		c              *Codec
		text, want, at string
	}{
		{codecOf(t, u32), `5`, "5", ""},
		{codecOf(t, u32), `["0x01","0x02","0x00","0x00"]`, "513", ""},
		{codecOf(t, u32), `["0x01","0x02"]`, "2 bytes, 4 needed", ""},
		{codecOf(t, arrayOf(u16, 2)), `["0x01","0x02"]`, "[1,2]", ""},
		{codecOf(t, arrayOf(u16, 2)), `["0x01","0x02","0x03","0x04"]`, "[513,1027]", ""},
		{codecOf(t, arrayOf(u8, 2)), `["0x01","0x02"]`, "[1,2]", ""},
		{codecOf(t, limit), `{"pps":1,"action":"BLUE"}`, `"BLUE" is none of`, "action"},
		{codecOf(t, mixed), `{"a":1,"b":2,"bytes":[1,2,3,400],"port":1,"mac":"00:00:00:00:00:00"}`, "400 is beyond", "bytes[3]"},
	} {
		b := make([]byte, test.c.Size())
		err := test.c.ParseJSON(b, jsonOf(t, test.text))
		got := string(test.c.Append(nil, b))
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, test.want) || Path(err) != test.at || err != nil && !errors.Is(err, fault.ErrUsage) {
			t.Errorf("%s: %s at %q", test.text, got, Path(err))
		}
	}
}

func TestParsePerCPUJSON(t *testing.T) {
	c := codecOf(t, limit)
	one, two := `{"pps":1,"action":"RED","pad":[0,0,0,0]}`, `{"pps":2,"action":"GREEN","pad":[0,0,0,0]}`
	for text, want := range map[string]string{
		one: one + "," + one,
		`{"per_cpu":[` + one + `,` + two + `],"sum":{}}`:                          one + "," + two,
		`[{"cpu":1,"value":` + two + `},{"cpu":0,"value":` + one + `}]`:           one + "," + two,
		`{"per_cpu":[` + one + `,{"pps":1,"action":7,"pad":[1,2,3,-4]}]}`:         "per_cpu[1].pad[3]",
		`[{"cpu":1,"value":` + two + `},{"cpu":0,"value":{"pps":-1,"action":0}}]`: "[1].value.pps",
		`[{"cpu":1,"value":` + two + `},{"cpu":1,"value":` + one + `}]`:           "[1].cpu",
		`[{"cpu":1,"value":` + two + `}]`:                                         "",
	} {
		b := make([]byte, 32)
		err := c.ParsePerCPUJSON(b, jsonOf(t, text), 16, 2)
		if err != nil {
			if Path(err) != want {
				t.Errorf("%s: %v at %q", text, err, Path(err))
			}
			continue
		}
		if got, _ := c.AppendPerCPU(nil, b, 16); !strings.Contains(string(got), `[`+want+`]`) {
			t.Errorf("%s: %s", text, got)
		}
	}
}

func TestParseMembers(t *testing.T) {
	c := codecOf(t, mixed)
	names := c.Members()
	if !slices.Equal(names, []string{"a", "b", "v4", "bytes", "port", "mac"}) {
		t.Fatal(names)
	}
	b := make([]byte, c.Size())
	err := c.ParseMembers(b, []string{"mac", "port", "bytes", "b", "a"}, []string{"aa:bb:cc:dd:ee:ff", "80", "[1,0,0,0]", "-5", "7"})
	if got := string(c.Append(nil, b)); err != nil || got != `{"a":7,"b":-5,"v4":1,"bytes":[1,0,0,0],"port":80,"mac":"aa:bb:cc:dd:ee:ff"}` {
		t.Errorf("%s, %v", got, err)
	}
	for member, text := range map[string]string{"port": "70000", "bytes": "[1,0,0,300]", "mac": "[1"} {
		err := c.ParseMembers(b, []string{member}, []string{text})
		if !strings.HasPrefix(Path(err), member) {
			t.Errorf("%s %s: %v", member, text, err)
		}
	}
	if codecOf(t, u32).Members() != nil {
		t.Error("a number has members")
	}
}

// TestDigits compares the two ways to read a number.
func TestDigits(t *testing.T) {
	for _, n := range []integer{{bytes: 1}, {bytes: 2, network: true}, {bytes: 4, signed: true}, {bytes: 8}, {bytes: 8, signed: true}} {
		for _, text := range []string{"0", "00", "1", "127", "128", "255", "256", "65535", "65536", "2147483647", "2147483648", "4294967296", "999999999999999999"} {
			slow, fast := make([]byte, n.bytes), make([]byte, n.bytes)
			number, err := parseNumber(text, "", "")
			if err != nil {
				t.Fatal(err)
			}
			_, high := limits(n.bytes*8, n.signed)
			fits := number.Cmp(high) <= 0
			if fits {
				n.store(slow, number)
			}
			if ok := n.parseDigits(fast, text); ok != fits || !slices.Equal(slow, fast) {
				t.Errorf("%s into %s: %v %x, want %v %x", text, strconv.Itoa(n.bytes), ok, fast, fits, slow)
			}
		}
	}
}
