package commands

import (
	"bufio"
	"encoding/json"
	"errors"

	"github.com/urfave/cli/v2"

	"bpfnet/internal/bpftool"
	"bpfnet/internal/fault"
	"bpfnet/internal/maps"
	"bpfnet/output"
)

// This file answers the map commands as bpftool does, for --json and --pretty.

// printsNull says whether a writer prints null, as bpftool's do. A dry run, which
// bpftool doesn't have, prints bpfnet's document.
func printsNull(c *cli.Context) bool { return asBpftool(c) && !c.Bool("dry-run") }

// showMapsAsBpftool is "map list" and "map show", which bpftool takes for the
// same: of one map if it is named, else of all.
func (e *Env) showMapsAsBpftool(c *cli.Context) error {
	if c.Bool("fill") {
		return usage(c, "--fill is in bpfnet's own JSON alone: use -o json")
	}
	if c.NArg() == 0 {
		return e.listMapsAsBpftool(c)
	}
	w, err := mapArgs(c, "MAP")
	if err != nil {
		return err
	}
	p, b, err := e.open(c)
	if err != nil {
		return err
	}
	defer b.Close()
	shown, err := b.Bpftool().MapShow(c.Context, w.ref, c.Bool("pids"))
	if err != nil {
		return err
	}
	e.notes(c, shown.Notes)
	if len(shown.Maps) == 1 {
		return p.Object(shown.Maps[0], nil)
	}
	return p.List(shown.Maps, nil)
}

func (e *Env) listMapsAsBpftool(c *cli.Context) error {
	p, b, err := e.open(c)
	if err != nil {
		return err
	}
	defer b.Close()
	all, err := b.Bpftool().MapList(c.Context, c.Bool("pids"))
	if err != nil {
		return err
	}
	e.notes(c, all.Notes)
	return p.List(all.Maps, nil)
}

// entryAsBpftool prints an entry that was looked for: null and the error when
// it isn't there.
func (e *Env) entryAsBpftool(c *cli.Context, p *output.Printer, api bpftool.API, entry json.RawMessage, err error) error {
	e.notes(c, api.MapNotes())
	if entry == nil {
		return err
	}
	if err := p.Object(entry, nil); err != nil {
		return err
	}
	return err
}

// nextAsBpftool is "map peek" and "map pop".
func (e *Env) nextAsBpftool(c *cli.Context, ref string, take bool) error {
	p, b, err := e.open(c)
	if err != nil {
		return err
	}
	defer b.Close()
	api := b.Bpftool()
	entry, err := api.MapNext(c.Context, ref, take)
	return e.entryAsBpftool(c, p, api, entry, err)
}

// dumpMapAsBpftool prints [] for a map without entries that could be read, and
// fails.
func (e *Env) dumpMapAsBpftool(c *cli.Context, p *output.Printer, api bpftool.API, request maps.DumpRequest) error {
	headers, err := api.MapHeaders(c.Context, request.Map)
	if err != nil {
		return err
	}
	if len(headers) > 1 {
		return e.dumpMapsAsBpftool(c, api, headers, request)
	}
	defer func() { e.notes(c, api.MapNotes()) }()
	rows := p.Rows()
	err = api.MapDump(c.Context, request, func(entry []byte) error { return rows.Add(entry, nil) })
	if err != nil && !errors.Is(err, fault.ErrUnsupported) {
		return err // the document stays unfinished, so that nobody takes it for whole
	}
	if err := rows.Close(); err != nil {
		return err
	}
	return err
}

// dumpMapsAsBpftool prints several maps of the same name, each with its
// beginning and its entries in "elements".
func (e *Env) dumpMapsAsBpftool(c *cli.Context, api bpftool.API, headers []bpftool.Object, request maps.DumpRequest) error {
	w := bufio.NewWriterSize(e.Stdout, 64<<10)
	separator := "["
	for _, header := range headers {
		request.Map = "id:" + decimal(header.Get("id").(uint32))
		w.WriteString(separator)
		if err := dumpElements(c, w, api, header, request); err != nil {
			return err
		}
		separator = ","
	}
	e.notes(c, api.MapNotes())
	w.WriteString("]\n")
	return w.Flush()
}

// dumpElements writes one of several maps. Errors of w come with its Flush.
func dumpElements(c *cli.Context, w *bufio.Writer, api bpftool.API, header bpftool.Object, request maps.DumpRequest) error {
	text, err := json.Marshal(header)
	if err != nil {
		return err
	}
	w.Write(text[:len(text)-1])
	w.WriteString(`,"elements":[`)
	separator := ""
	err = api.MapDump(c.Context, request, func(entry []byte) error {
		w.WriteString(separator)
		separator = ","
		_, err := w.Write(entry)
		return err
	})
	if err != nil && !errors.Is(err, fault.ErrUnsupported) {
		return err
	}
	_, err = w.WriteString("]}")
	return err
}
