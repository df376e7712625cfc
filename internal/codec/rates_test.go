package codec

import (
	"encoding/binary"
	"math"
	"slices"
	"testing"

	"github.com/cilium/ebpf/btf"
)

func TestRates(t *testing.T) {
	integer := func(size uint32) *btf.Int { return &btf.Int{Name: "int", Size: size} }
	value := &btf.Struct{Name: "value", Size: 40, Members: []btf.Member{
		{Name: "bytes", Type: integer(8)},
		{Type: &btf.Struct{Size: 8, Members: []btf.Member{{Name: "low", Type: integer(4)}, {Name: "port", Type: &btf.Typedef{Name: "__be16", Type: integer(2)}, Offset: 32}}}, Offset: 64},
		{Name: "either", Type: &btf.Union{Size: 4, Members: []btf.Member{{Name: "a", Type: integer(4)}, {Name: "b", Type: integer(4)}}}, Offset: 128},
		{Name: "pair", Type: &btf.Array{Type: integer(2), Nelems: 2}, Offset: 160},
		{Name: "load", Type: &btf.Float{Name: "double", Size: 8}, Offset: 192},
		{Name: "few", Type: integer(4), Offset: 256, BitfieldSize: 3},
	}}
	c := New(value, 40)
	var paths []string
	for _, n := range c.Numbers() {
		paths = append(paths, n.Path)
	}
	if want := []string{"bytes", "low", "pair[0]", "pair[1]", "load", "few"}; !slices.Equal(paths, want) {
		t.Fatalf("numbers %q, want %q", paths, want)
	}
	before, after := make([]byte, 80), make([]byte, 80) // two CPUs
	binary.NativeEndian.PutUint64(before, math.MaxUint64)
	binary.NativeEndian.PutUint64(after, 1) // wrapped
	binary.NativeEndian.PutUint64(after[40:], 5)
	binary.NativeEndian.PutUint32(before[8:], 9)
	binary.NativeEndian.PutUint64(after[24:], math.Float64bits(1.5))
	var grown []float64
	for _, n := range c.Numbers() {
		grown = append(grown, n.Growth(before, after, 40))
	}
	if want := []float64{7, -9, 0, 0, 1.5, 0}; !slices.Equal(grown, want) {
		t.Errorf("growth %v, want %v", grown, want)
	}
	want := `{"bytes":7,"low":-9,"port":null,"either":{"a":null,"b":null},"pair":[0,0],"load":1.5,"few":0}`
	if got := string(c.AppendRates(nil, grown)); got != want {
		t.Errorf("rates %s, want %s", got, want)
	}
	if n := c.Numbers()[0]; n.Growth(nil, after, 40) != 6 {
		t.Errorf("growth from nothing: %v", n.Growth(nil, after, 40))
	}
	if got := string(New(nil, 4).AppendRates(nil, nil)); got != "null" {
		t.Errorf("rates of bytes: %s", got)
	}
	if got := string(New(integer(4), 4).AppendRates(nil, []float64{2.6})); got != "3" {
		t.Errorf("rates of a number: %s", got)
	}
	if long := New(&btf.Array{Type: integer(4), Nelems: 5000}, 20000); len(long.Numbers()) != mostNumbers {
		t.Errorf("%d numbers", len(long.Numbers()))
	}
}
