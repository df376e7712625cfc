package bench

import (
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestNewRecord(t *testing.T) {
	r := newRecord("x", "ms", []float64{2, 4, 9}, []float64{1, 1, 3}, goal{"ratio", 2.5})
	if r.Value != 4 || *r.Baseline != 1 || *r.Ratio != 3 || r.Noise != 0.3333 || !r.missed() {
		t.Errorf("got %+v with baseline %v and ratio %v", r, *r.Baseline, *r.Ratio)
	}
	alone := newRecord("x", "ms", []float64{10, 11, 8}, nil, goal{"value", 10})
	if alone.Ratio != nil || alone.Noise != 0.1 || alone.missed() {
		t.Errorf("got %+v", alone)
	}
}

func TestMoved(t *testing.T) {
	one := 1.0
	for _, c := range []struct {
		name      string
		kept, now record
		beyond    bool
	}{
		{"within the noise of both", record{Value: 100, Noise: 0.03}, record{Value: 108, Noise: 0.03}, false},
		{"beyond it", record{Value: 100, Noise: 0.03}, record{Value: 110, Noise: 0.03}, true},
		{"downwards", record{Value: 100, Noise: 0.03}, record{Value: 90, Noise: 0.03}, true},
		{"without noise, a little", record{Value: 1000}, record{Value: 1020}, false},
		{"without noise, more", record{Value: 1000}, record{Value: 1040}, true},
		{"the ratio decides", record{Value: 100, Ratio: &one}, record{Value: 200, Ratio: &one}, false},
		{"another unit", record{Value: 1, Unit: "s"}, record{Value: 1000, Unit: "ms"}, false},
		{"from nothing", record{Value: 0}, record{Value: 1}, false},
	} {
		if _, beyond := c.now.moved(c.kept); beyond != c.beyond {
			t.Errorf("%s: beyond the noise: %v", c.name, beyond)
		}
	}
}

func TestRecordsSurviveTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "results.ndjson")
	if none, err := readRecords(path); none != nil || err != nil {
		t.Errorf("no file: got %v, %v", none, err)
	}
	want := []record{
		newRecord("a", "ns", []float64{1.23456}, nil, goal{}),
		newRecord("b", "ms", []float64{3}, []float64{2}, goal{"ratio", 1. / 3}),
	}
	if err := writeRecords(path, want); err != nil {
		t.Fatal(err)
	}
	if got, err := readRecords(path); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestMerge(t *testing.T) {
	kept := []record{{Name: "gone"}, {Name: "b", Value: 1}, {Name: "a", Value: 1}}
	measured := []record{{Name: "c", Value: 2}, {Name: "b", Value: 2}}
	want := []record{{Name: "a", Value: 1}, {Name: "b", Value: 2}, {Name: "c", Value: 2}}
	if got := merge([]string{"a", "b", "c", "d"}, kept, measured); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v", got)
	}
}

func TestTable(t *testing.T) {
	now := []record{
		newRecord("new", "ns", []float64{1.5}, nil, goal{"value", 1}),
		newRecord("slower", "ms", []float64{200}, []float64{100}, goal{"ratio", 3}),
	}
	kept := []record{newRecord("slower", "ms", []float64{100}, []float64{100}, goal{})}
	for _, line := range []string{
		"| new | 1.50 ns |  |  | ±0 % | 1.00, missed | new |",
		"| slower | 200 ms | 100 | 2.00 | ±0 % | ratio 3.00 | +100 % |",
	} {
		if got := table(now, kept); !strings.Contains(got, line+"\n") {
			t.Errorf("no line %q in\n%s", line, got)
		}
	}
}
