package commands

import (
	"context"
	"encoding/json"
	"strings"

	"bpfnet/internal/bpftool"
	"bpfnet/internal/fault"
	"bpfnet/internal/maps"
)

// fakeBpftool is a bpftool.API without a kernel. Its maps are a hash, a queue,
// and two maps of the same name.
type fakeBpftool struct{ bpftool.API }

func fakeMapObjects() []bpftool.Object {
	object := func(id uint32, kind, name string) bpftool.Object {
		return bpftool.Object{
			{Name: "id", Value: id}, {Name: "type", Value: kind}, {Name: "name", Value: name}, {Name: "flags", Value: 0},
			{Name: "bytes_key", Value: 1}, {Name: "bytes_value", Value: 1},
		}
	}
	return []bpftool.Object{object(57, "hash", "limits"), object(58, "queue", "jobs"), object(60, "hash", "twin"), object(61, "hash", "twin")}
}

func (fakeBpftool) MapList(context.Context, bool) (bpftool.MapListing, error) {
	return bpftool.MapListing{Maps: fakeMapObjects(), Notes: []string{"a note"}}, nil
}

func (f fakeBpftool) MapShow(_ context.Context, ref string, pids bool) (bpftool.MapListing, error) {
	var l bpftool.MapListing
	for _, o := range fakeMapObjects() {
		name := o.Get("name").(string)
		if ref != "name:"+name && ref != "id:"+decimal(o.Get("id").(uint32)) {
			continue
		}
		if pids {
			o = append(o, bpftool.Field{Name: "pids", Value: []string{"a process"}})
		}
		l.Maps = append(l.Maps, o)
	}
	if len(l.Maps) == 0 {
		return l, fault.New(fault.ErrNotFound, "open map %s: no such map", ref)
	}
	return l, nil
}

func (f fakeBpftool) MapHeaders(ctx context.Context, ref string) ([]bpftool.Object, error) {
	l, err := f.MapShow(ctx, ref, false)
	for i := range l.Maps {
		l.Maps[i] = l.Maps[i][:4]
	}
	return l.Maps, err
}

func (fakeBpftool) MapNotes() []string { return []string{"a note on types"} }

func (f fakeBpftool) MapDump(ctx context.Context, r maps.DumpRequest, emit func([]byte) error) error {
	l, err := f.MapShow(ctx, r.Map, false)
	if err != nil {
		return err
	}
	if l.Maps[0].Get("type") == "queue" {
		return fault.New(fault.ErrUnsupported, "dump map %s: a queue has no entries to read", r.Map)
	}
	for i, key := range []string{"0x01", "0x02", "0x11"} {
		if r.Limit > 0 && uint64(i) == r.Limit || !strings.HasPrefix("hex:"+key[2:], r.Match) {
			break
		}
		if err := emit([]byte(`{"key":["` + key + `"],"value":["0x07"]}`)); err != nil {
			return err
		}
	}
	return nil
}

func (f fakeBpftool) MapLookup(ctx context.Context, ref, key string) (json.RawMessage, error) {
	if _, err := f.MapShow(ctx, ref, false); err != nil {
		return nil, err
	}
	if key != "hex:0102" {
		return json.RawMessage("null"), fault.New(fault.ErrNotFound, "find key %s in map %s: no such key", key, ref)
	}
	return json.RawMessage(`{"key":["0x01","0x02"],"value":["0x07"]}`), nil
}

func (f fakeBpftool) MapNext(ctx context.Context, ref string, _ bool) (json.RawMessage, error) {
	if _, err := f.MapShow(ctx, ref, false); err != nil {
		return nil, err
	}
	if ref != "id:58" {
		return json.RawMessage("null"), fault.New(fault.ErrNotFound, "peek into map %s: it is empty", ref)
	}
	return json.RawMessage(`{"key":[],"value":["0x07"]}`), nil
}
