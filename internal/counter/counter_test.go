package counter

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"bpfnet/bpf"
	"bpfnet/internal/datapath"
	"bpfnet/internal/fault"
)

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func sampleAt(seconds int, factor uint64) Sample {
	return Sample{
		Time: start.Add(time.Duration(seconds) * time.Second),
		Interfaces: map[uint32]Classes{
			4: {0: {10 * factor, 1000 * factor}, 10: {1, 60}},
			7: {6: {factor, 90 * factor}, 12: {1, 9}},
		},
		Devices: map[uint32]string{4: "eth0"},
	}
}

func TestDocument(t *testing.T) {
	before := sampleAt(0, 1)
	got, err := json.Marshal(View{}.Document(&before, sampleAt(2, 3)))
	if err != nil {
		t.Fatal(err)
	}
	want := `{"schema":"bpfnet.counters/v1","time":"2026-01-02T03:04:07Z","interval_seconds":2,"observed_at":"xdp","interfaces":[` +
		`{"devname":"eth0","ifindex":4,"packets":31,"bytes":3060,"packets_per_second":10,"bytes_per_second":1000,"protocols":[` +
		`{"ethertype":"ipv4","protocol":"tcp","truncated":false,"packets":30,"bytes":3000},` +
		`{"ethertype":"arp","protocol":null,"truncated":false,"packets":1,"bytes":60}]},` +
		`{"devname":null,"ifindex":7,"packets":4,"bytes":279,"packets_per_second":1,"bytes_per_second":90,"protocols":[` +
		`{"ethertype":"ipv6","protocol":"udp","truncated":false,"packets":3,"bytes":270},` +
		`{"ethertype":null,"protocol":null,"truncated":true,"packets":1,"bytes":9}]}],` +
		`"others":{"packets":0,"bytes":0,"packets_per_second":0,"bytes_per_second":0,"interfaces":0},` +
		`"total":{"packets":35,"bytes":3339,"packets_per_second":11,"bytes_per_second":1090}}`
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestDocumentChoice(t *testing.T) {
	for _, test := range []struct {
		view  View
		first uint32
	}{
		{View{Limit: 1}, 4},
		{View{Limit: 1, Sort: "bytes"}, 7},
		{View{Limit: 1, Sort: "-ifindex"}, 7},
		{View{Device: "eth0"}, 4},
	} {
		d := test.view.Document(nil, sampleAt(0, 1))
		if len(d.Interfaces) != 1 || *d.Interfaces[0].IfIndex != test.first || d.Others.Interfaces != 1 {
			t.Errorf("%+v shows %+v", test.view, d)
		}
		sum := d.Others.Counter
		sum.add(d.Interfaces[0].Counter)
		if sum != d.Total.Counter || d.Total.BytesPerSecond != nil {
			t.Errorf("%+v: shown and others are %+v, total %+v", test.view, sum, d.Total)
		}
	}
}

func TestDocumentStartedAnew(t *testing.T) {
	before := sampleAt(0, 9)
	if d := (View{}).Document(&before, sampleAt(2, 1)); d.Interfaces[0].BytesPerSecond != nil || d.Total.BytesPerSecond != nil {
		t.Errorf("rates of counters that started anew: %+v", d)
	}
}

func TestCheck(t *testing.T) {
	for _, bad := range []View{{Sort: "colour"}, {Limit: -1}} {
		if err := bad.Check(); !errors.Is(err, fault.ErrUsage) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	for _, field := range SortFields() {
		if err := (View{Sort: field}).Check(); err != nil {
			t.Error(err)
		}
	}
}

// TestClassesMatchProgram compares the names of the classes with the fields of
// the program's struct.
func TestClassesMatchProgram(t *testing.T) {
	families := map[string]string{"ipv4": "4", "ipv6": "6"}
	fields := reflect.TypeFor[bpf.InterfaceCounters]()
	if fields.Size() != reflect.TypeFor[Classes]().Size() {
		t.Errorf("a value has %d bytes, want %d", reflect.TypeFor[Classes]().Size(), fields.Size())
	}
	for i, name := range classNames {
		want := name.Protocol + families[name.EtherType]
		switch {
		case name.Truncated:
			want = "truncated"
		case name.EtherType == "":
			want = "otherethertype"
		case name.Protocol == "":
			want = name.EtherType
		}
		if field := fields.Field(i + 1); strings.ToLower(field.Name) != want {
			t.Errorf("class %d is %s, want %s", i, field.Name, want)
		}
	}
}

// loaded is xdp-counter in the kernel, without pins.
type loaded struct {
	datapath.API
	*ebpf.Collection
}

func (l *loaded) Attachments(context.Context, string) ([]datapath.Attachment, error) {
	device, index := "eth0", uint32(9)
	return []datapath.Attachment{{Hook: "xdp", DevName: &device, IfIndex: &index}}, nil
}

func (l *loaded) OpenMap(_, name string, _ bool) (*ebpf.Map, error) { return l.Maps[name].Clone() }

func TestSample(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("loading BPF programs needs root")
	}
	program, _ := bpf.Lookup("xdp-counter")
	spec, err := program.Spec()
	if err != nil {
		t.Fatal(err)
	}
	collection, err := ebpf.NewCollection(spec)
	if err != nil {
		t.Fatal(err)
	}
	defer collection.Close()
	frame := make([]byte, 64)
	frame[12], frame[13] = 0x08, 0x06
	if _, _, err := collection.Programs["xdp_counter"].Test(frame); err != nil {
		t.Fatal(err)
	}
	s, err := NewReader(&loaded{Collection: collection}, "xdp-counter").Sample(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	d := View{}.Document(nil, s)
	if d.Total.Counter != (Counter{1, 64}) || len(d.Interfaces) != 2 {
		t.Errorf("document is %+v", d)
	}
	if p := d.Interfaces[0].Protocols; len(p) != 1 || *p[0].EtherType != "arp" {
		t.Errorf("protocols are %+v", p)
	}
	if d.Interfaces[1].Packets != 0 || *d.Interfaces[1].DevName != "eth0" {
		t.Errorf("an attached interface without packets is %+v", d.Interfaces[1])
	}
}
