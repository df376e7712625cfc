package traffic

import (
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"bpfnet/internal/fault"
)

var (
	start = time.Date(2026, 1, 2, 3, 4, 5, 600, time.UTC)
	web   = Key{Point: TC, Address: netip.MustParseAddr("10.77.0.4"), IfIndex: 4}
	db    = Key{Point: TC, Address: netip.MustParseAddr("10.77.0.5"), IfIndex: 5}
	six   = Key{Point: TC, Address: netip.MustParseAddr("2001:db8::1"), IfIndex: 5}
	inner = Key{Point: Cgroup, Address: netip.MustParseAddr("10.77.0.4"), CgroupID: 1 << 60}
)

func sampleAt(seconds float64, factor uint64) Sample {
	return Sample{
		Time: start.Add(time.Duration(seconds * float64(time.Second))),
		Pods: map[Key]Counters{
			web:   {1000 * factor, 10 * factor, 500 * factor, 5 * factor},
			db:    {3000 * factor, 30 * factor, 100 * factor, 1 * factor},
			six:   {10, 1, 20, 2},
			inner: {7, 1, 8, 1},
		},
		Rows: map[Row]Counters{
			{TC, "non_ip"}:       {60 * factor, factor, 42, 1},
			{TC, "map_full"}:     {100, 2, 50, 1},
			{Cgroup, "map_full"}: {1, 1, 0, 0},
		},
		Attached: []Point{TC},
		Devices:  map[uint32]string{4: "veth-a"},
	}
}

func addresses(d Document) string {
	var all []string
	for _, pod := range d.Pods {
		all = append(all, pod.Address.String())
	}
	return strings.Join(all, " ")
}

func TestDocument(t *testing.T) {
	before := sampleAt(0, 1)
	d := View{}.Document(&before, sampleAt(2, 3))
	got, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"schema":"bpfnet.pods/v1","time":"2026-01-02T03:04:07Z","interval_seconds":2,"observed_at":"tc","loss":{"map_full":3},` +
		`"pods":[` +
		`{"address":"10.77.0.5","namespace":null,"pod":null,"pod_uid":null,"container":null,"container_id":null,"devname":null,"ifindex":5,"cgroup_id":null,` +
		`"transmit_bytes":9000,"transmit_packets":90,"receive_bytes":300,"receive_packets":3,` +
		`"transmit_bytes_per_second":3000,"transmit_packets_per_second":30,"receive_bytes_per_second":100,"receive_packets_per_second":1},` +
		`{"address":"10.77.0.4","namespace":null,"pod":null,"pod_uid":null,"container":null,"container_id":null,"devname":"veth-a","ifindex":4,"cgroup_id":null,` +
		`"transmit_bytes":3000,"transmit_packets":30,"receive_bytes":1500,"receive_packets":15,` +
		`"transmit_bytes_per_second":1000,"transmit_packets_per_second":10,"receive_bytes_per_second":500,"receive_packets_per_second":5},` +
		`{"address":"2001:db8::1","namespace":null,"pod":null,"pod_uid":null,"container":null,"container_id":null,"devname":null,"ifindex":5,"cgroup_id":null,` +
		`"transmit_bytes":10,"transmit_packets":1,"receive_bytes":20,"receive_packets":2,` +
		`"transmit_bytes_per_second":0,"transmit_packets_per_second":0,"receive_bytes_per_second":0,"receive_packets_per_second":0}],` +
		`"others":{"transmit_bytes":280,"transmit_packets":5,"receive_bytes":92,"receive_packets":2,` +
		`"transmit_bytes_per_second":60,"transmit_packets_per_second":1,"receive_bytes_per_second":0,"receive_packets_per_second":0,"pods":0,"rows":[` +
		row("non_ip", `"transmit_bytes":180,"transmit_packets":3,"receive_bytes":42,"receive_packets":1,"transmit_bytes_per_second":60,"transmit_packets_per_second":1,`) +
		"," + row("truncated", zeros) + "," + row("too_deep", zeros) + "," +
		row("map_full", `"transmit_bytes":100,"transmit_packets":2,"receive_bytes":50,"receive_packets":1,"transmit_bytes_per_second":0,"transmit_packets_per_second":0,`) +
		"," + row("not_a_pod", zeros) + "," + row("multicast", zeros) + "," + row("unspecified", zeros) + `]},` +
		`"total":{"transmit_bytes":12290,"transmit_packets":126,"receive_bytes":1912,"receive_packets":22,` +
		`"transmit_bytes_per_second":4060,"transmit_packets_per_second":41,"receive_bytes_per_second":600,"receive_packets_per_second":6}}`
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

const zeros = `"transmit_bytes":0,"transmit_packets":0,"receive_bytes":0,"receive_packets":0,"transmit_bytes_per_second":0,"transmit_packets_per_second":0,`

func row(name, counters string) string {
	return `{"row":"` + name + `",` + counters + `"receive_bytes_per_second":0,"receive_packets_per_second":0}`
}

func TestDocumentFirst(t *testing.T) {
	d := View{}.Document(nil, sampleAt(0, 1))
	if d.IntervalSeconds != nil || d.Total.TransmitBytesPerSecond != nil || d.Pods[0].ReceivePacketsPerSecond != nil {
		t.Errorf("rates without a sample before: %+v", d)
	}
	empty, err := json.Marshal(View{}.Document(nil, Sample{}))
	if err != nil || !strings.Contains(string(empty), `"pods":[]`) {
		t.Errorf("no Pods are %s, %v", empty, err)
	}
}

func TestDocumentSums(t *testing.T) {
	before := sampleAt(0, 1)
	for _, view := range []View{
		{}, {Limit: 1}, {Limit: 2, Sort: "address"}, {Device: "veth-a"}, {Address: netip.MustParsePrefix("2001:db8::/32")},
		{Point: Cgroup}, {Limit: 1, Sort: "-packets_per_second", Device: "none"},
	} {
		d := view.Document(&before, sampleAt(1.5, 4))
		sum := d.Others.Counters
		for _, pod := range d.Pods {
			sum.Add(pod.Counters)
		}
		if sum != d.Total.Counters {
			t.Errorf("%+v: Pods and others are %+v, total %+v", view, sum, d.Total.Counters)
		}
	}
}

func TestDocumentChoice(t *testing.T) {
	now := sampleAt(0, 1)
	for _, test := range []struct {
		view View
		want string
	}{
		{View{}, "10.77.0.5 10.77.0.4 2001:db8::1"},
		{View{Sort: "address"}, "10.77.0.4 10.77.0.5 2001:db8::1"},
		{View{Sort: "-address"}, "2001:db8::1 10.77.0.5 10.77.0.4"},
		{View{Sort: "receive_bytes"}, "2001:db8::1 10.77.0.5 10.77.0.4"},
		{View{Sort: "bytes_per_second"}, "10.77.0.4 10.77.0.5 2001:db8::1"},
		{View{Limit: 1}, "10.77.0.5"},
		{View{Limit: 1, Device: "veth-a"}, "10.77.0.4"},
		{View{Address: netip.MustParsePrefix("10.0.0.0/8"), Sort: "-transmit_packets"}, "10.77.0.5 10.77.0.4"},
		{View{Point: Cgroup}, "10.77.0.4"},
	} {
		if got := addresses(test.view.Document(nil, now)); got != test.want {
			t.Errorf("%+v shows %s, want %s", test.view, got, test.want)
		}
	}
	d := View{Point: Cgroup}.Document(nil, now)
	if pod := d.Pods[0]; *pod.CgroupID != "1152921504606846976" || pod.IfIndex != nil || d.Loss.MapFull != 1 {
		t.Errorf("at cgroup: %+v", d)
	}
}

func TestDocumentStartedAnew(t *testing.T) {
	before := sampleAt(0, 9)
	d := View{}.Document(&before, sampleAt(2, 1))
	for _, pod := range d.Pods {
		if unknown := pod.TransmitBytesPerSecond == nil; unknown != (pod.Address != six.Address) {
			t.Errorf("%v has rate %v", pod.Address, pod.TransmitBytesPerSecond)
		}
	}
	if d.Total.TransmitBytesPerSecond != nil {
		t.Error("the total has a rate although a part is unknown")
	}
}

func TestDefault(t *testing.T) {
	for _, test := range []struct {
		attached []Point
		bypassed bool
		point    Point
		several  bool
	}{
		{nil, false, TC, false},
		{[]Point{TC}, false, TC, false},
		{[]Point{TC}, true, TC, false},
		{[]Point{Cgroup}, false, Cgroup, false},
		{[]Point{Cgroup, TC}, false, TC, true},
		{[]Point{Cgroup, TC}, true, Cgroup, true},
	} {
		if point, several := (Sample{Attached: test.attached}).Default(test.bypassed); point != test.point || several != test.several {
			t.Errorf("%v: %v, %v", test.attached, point, several)
		}
	}
}

func TestCheck(t *testing.T) {
	for _, bad := range []View{{Sort: "colour"}, {Sort: "--bytes"}, {Point: "xdp"}, {Limit: -1}} {
		if err := bad.Check(); !errors.Is(err, fault.ErrUsage) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	for _, field := range SortFields() {
		if err := (View{Sort: "-" + field}).Check(); err != nil {
			t.Error(err)
		}
	}
}
