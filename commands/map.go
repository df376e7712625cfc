package commands

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"bpfnet/internal/codec"
	"bpfnet/internal/maps"
	"bpfnet/output"
)

type mapDoc struct {
	Schema string `json:"schema"`
	maps.Map
}

type entryDoc struct {
	Schema string `json:"schema"`
	maps.Entry
}

type mapChangeDoc struct {
	Schema string `json:"schema"`
	maps.Change
	DryRun bool `json:"dry_run"`
}

func mapCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:  "map",
		Usage: "read and write the entries of maps, bpfnet's and others'",
		Description: "MAP is NAME/MAP for a map of a loaded program, id:N, the path of a pin, or a name that only one map has. Keys and values are written by their BTF type: " +
			"300, 10.0.0.1, 10.0.0.0/8, aa:bb:cc:dd:ee:ff, enum words, JSON for structs; hex:0a000001 gives the bytes themselves.",
		Subcommands: []*cli.Command{
			mapListCommand(env),
			mapShowCommand(env),
			mapGetCommand(env),
			mapSetCommand(env),
			mapDeleteCommand(env),
			mapDumpCommand(env),
			mapNextCommand(env),
			mapImportCommand(env),
			mapClearCommand(env),
			mapEventsCommand(env),
			mapCreateCommand(env),
			mapFreezeCommand(env),
			mapPinCommand(env),
			mapUnpinCommand(env),
			mapPushCommand(env),
			mapPopCommand(env),
			mapPeekCommand(env),
			mapWatchCommand(env),
		},
	}
}

func mapListCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:  "list",
		Usage: "the maps of this machine",
		Flags: userFlags(),
		Action: func(c *cli.Context) error {
			if asBpftool(c) {
				return env.showMapsAsBpftool(c)
			}
			if err := args(c); err != nil {
				return err
			}
			p, b, err := env.open(c)
			if err != nil {
				return err
			}
			defer b.Close()
			listing, err := b.Maps().List(c.Context)
			if err != nil {
				return err
			}
			env.notes(c, listing.Notes)
			if err := env.addUsers(c, b.Maps(), listing.Maps); err != nil {
				return err
			}
			docs := make([]mapDoc, len(listing.Maps))
			for i, m := range listing.Maps {
				docs[i] = mapDocument(m)
			}
			return p.List(docs, func() output.Table { return mapTable(c, listing.Maps) })
		},
	}
}

func mapDocument(m maps.Map) mapDoc {
	m.Pinned = list(m.Pinned)
	return mapDoc{"bpfnet.map/v1", m}
}

func mapTable(c *cli.Context, all []maps.Map) output.Table {
	t := output.Table{Header: []string{"id", "type", "map", "name", "key", "value", "max entries", "programs"}}
	if c.Bool("fill") {
		t.Header = append(t.Header, "fill")
	}
	if c.Bool("pids") {
		t.Header = append(t.Header, "processes")
	}
	for _, m := range all {
		row := []string{
			decimal(m.ID), m.Type, m.Ref, m.Name,
			typeOrSize(m.KeyType, m.BytesKey), typeOrSize(m.ValueType, m.BytesValue), decimal(m.MaxEntries), programsCell(m.ProgIDs),
		}
		if c.Bool("fill") {
			row = append(row, fillCell(m.Fill))
		}
		if c.Bool("pids") {
			row = append(row, processesCell(m.Processes))
		}
		t.Rows = append(t.Rows, row)
	}
	return t
}

func decimal(n uint32) string { return strconv.FormatUint(uint64(n), 10) }

func typeOrSize(name *string, size uint32) string {
	if name != nil {
		return *name
	}
	return counted(int(size), "byte")
}

func typeAndSize(name *string, size uint32) string {
	if name != nil {
		return fmt.Sprintf("%s (%s)", *name, counted(int(size), "byte"))
	}
	return typeOrSize(nil, size)
}

func mapShowCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:      "show",
		Usage:     "what kind of map it is, the types of its keys and values, and who uses it",
		ArgsUsage: "MAP",
		Flags:     userFlags(),
		Action: func(c *cli.Context) error {
			if asBpftool(c) {
				return env.showMapsAsBpftool(c)
			}
			w, err := mapArgs(c, "MAP")
			if err != nil {
				return err
			}
			p, b, err := env.open(c)
			if err != nil {
				return err
			}
			defer b.Close()
			m, err := b.Maps().Show(c.Context, w.ref)
			if err != nil {
				return err
			}
			one := []maps.Map{m}
			if err := env.addUsers(c, b.Maps(), one); err != nil {
				return err
			}
			return p.Object(mapDocument(one[0]), func() output.Table { return mapDetails(c, one[0]) })
		},
	}
}

func mapDetails(c *cli.Context, m maps.Map) output.Table {
	memory, btf := "unknown", "none"
	if m.BytesMemlock != nil {
		memory = output.Bytes(*m.BytesMemlock)
	}
	if m.BTFID != nil {
		btf = decimal(*m.BTFID)
	}
	t := output.Table{Header: []string{"field", "value"}, Rows: [][]string{
		{"map", m.Ref},
		{"id", decimal(m.ID)},
		{"name", m.Name},
		{"type", m.Type},
		{"flags", fmt.Sprintf("0x%x", m.Flags)},
		{"key", typeAndSize(m.KeyType, m.BytesKey)},
		{"value", typeAndSize(m.ValueType, m.BytesValue)},
		{"max entries", decimal(m.MaxEntries)},
		{"memory", memory},
		{"frozen", strconv.FormatBool(m.Frozen)},
		{"btf id", btf},
		{"pinned", strings.Join(m.Pinned, " ")},
		{"programs", programsCell(m.ProgIDs)},
	}}
	if m.Fill != nil {
		t.Rows = append(t.Rows, []string{"fill", fillCell(m.Fill)})
	}
	if c.Bool("pids") {
		t.Rows = append(t.Rows, []string{"processes", processesCell(m.Processes)})
	}
	return t
}

func mapGetCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:      "get",
		Aliases:   []string{"lookup"},
		Usage:     "the value of a key; an address in an LPM trie finds the longest prefix that it lies in",
		ArgsUsage: "MAP KEY",
		Action: func(c *cli.Context) error {
			w, err := mapArgs(c, "MAP", "KEY")
			if err != nil {
				return err
			}
			p, b, err := env.open(c)
			if err != nil {
				return err
			}
			defer b.Close()
			if asBpftool(c) {
				api := b.Bpftool()
				entry, err := api.MapLookup(c.Context, w.ref, w.key)
				return env.entryAsBpftool(c, p, api, entry, err)
			}
			entry, err := b.Maps().Get(c.Context, w.ref, w.key)
			if err != nil {
				return err
			}
			env.notes(c, entry.Notes)
			return p.Object(entryDoc{"bpfnet.map_entry/v1", entry}, func() output.Table {
				return output.Table{Header: []string{"key", "value"}, Rows: [][]string{{text(entry.Key), brief(entry.Value, entry.Sum)}}}
			})
		},
	}
}

// text is a JSON document for people: a plain string without its quotes.
func text(doc []byte) string { return string(codec.Text(doc)) }

func mapSetCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:      "set",
		Aliases:   []string{"update"},
		Usage:     "write the value of a key; in a per-CPU map for every CPU",
		ArgsUsage: "MAP KEY VALUE",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "if-absent", Usage: "only if the key isn't there yet"},
			&cli.BoolFlag{Name: "if-present", Usage: "only if the key is there"},
		},
		Action: func(c *cli.Context) error {
			w, err := mapArgs(c, "MAP", "KEY", "VALUE")
			if err != nil {
				return err
			}
			request := maps.SetRequest{Map: w.ref, Key: w.key, Value: w.value, Condition: w.condition, ConditionWord: w.conditionWord, DryRun: c.Bool("dry-run")}
			switch {
			case c.Bool("if-absent") && c.Bool("if-present"):
				return usage(c, "--if-absent and --if-present exclude each other")
			case w.condition != maps.Always && (c.Bool("if-absent") || c.Bool("if-present")):
				return usage(c, "--if-absent and --if-present stand in place of exist and noexist")
			case c.Bool("if-absent"):
				request.Condition, request.ConditionWord = maps.IfAbsent, "--if-absent"
			case c.Bool("if-present"):
				request.Condition, request.ConditionWord = maps.IfPresent, "--if-present"
			}
			return env.changeMap(c, keyChange("set", "has that value already"), func(api maps.API) (maps.Change, error) {
				return api.Set(c.Context, request)
			})
		},
	}
}

func mapDeleteCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:      "delete",
		Usage:     "remove a key; one that isn't there is no error",
		ArgsUsage: "MAP KEY",
		Action: func(c *cli.Context) error {
			w, err := mapArgs(c, "MAP", "KEY")
			if err != nil {
				return err
			}
			request := maps.DeleteRequest{Map: w.ref, Key: w.key, DryRun: c.Bool("dry-run")}
			return env.changeMap(c, keyChange("deleted", "isn't there"), func(api maps.API) (maps.Change, error) {
				return api.Delete(c.Context, request)
			})
		},
	}
}

// changeMap runs a writer and reports what it did, in words and in a table.
func (e *Env) changeMap(c *cli.Context, report func(maps.Change) (done, output.Table), write func(maps.API) (maps.Change, error)) error {
	p, b, err := e.open(c)
	if err != nil {
		return err
	}
	defer b.Close()
	change, err := write(b.Maps())
	if err != nil {
		return err
	}
	if printsNull(c) {
		e.notes(c, change.Notes)
		return p.Object(nil, nil)
	}
	said, table := report(change)
	said.changed, said.notes = change.Changed, change.Notes
	e.done(c, p, said)
	change.Notes = list(change.Notes)
	return p.Object(mapChangeDoc{"bpfnet.map_change/v1", change, c.Bool("dry-run")}, func() output.Table { return table })
}

// keyChange reports changes of entries that have keys.
func keyChange(did, already string) func(maps.Change) (done, output.Table) {
	return func(change maps.Change) (done, output.Table) {
		key := text(change.Key)
		return done{
				did:     fmt.Sprintf("%s key %s of %s", did, key, change.Map),
				already: fmt.Sprintf("key %s of %s %s", key, change.Map, already),
			}, output.Table{Header: []string{"key", "value", "previous"}, Rows: [][]string{
				{key, orNone(change.Value), orNone(change.Previous)},
			}}
	}
}

func orNone(doc json.RawMessage) string {
	if doc == nil {
		return "none"
	}
	return text(doc)
}

func mapDumpCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:      "dump",
		Usage:     "all entries; of a per-CPU value the table shows the sum, the other formats every CPU",
		ArgsUsage: "MAP",
		Flags: []cli.Flag{
			&cli.Uint64Flag{Name: "limit", DefaultText: noLimit, Usage: "end after `N` entries"},
			&cli.StringFlag{Name: "match", Usage: "only keys whose text begins with `PREFIX`, or with hex: whose bytes do"},
		},
		Action: func(c *cli.Context) error {
			w, err := mapArgs(c, "MAP")
			if err != nil {
				return err
			}
			if c.IsSet("limit") && c.Uint64("limit") == 0 {
				return usage(c, "--limit 0: the least is 1")
			}
			p, b, err := env.open(c)
			if err != nil {
				return err
			}
			defer b.Close()
			request := maps.DumpRequest{Map: w.ref, Limit: c.Uint64("limit"), Match: c.String("match")}
			if asBpftool(c) {
				return env.dumpMapAsBpftool(c, p, b.Bpftool(), request)
			}
			return env.dumpMap(c, p, b.Maps(), request)
		},
	}
}

func (e *Env) dumpMap(c *cli.Context, p *output.Printer, api maps.API, request maps.DumpRequest) error {
	rows := p.Rows()
	var document []byte
	dumped, err := api.Dump(c.Context, request, func(row maps.Row) error {
		document = append(document[:0], `{"key":`...)
		document = append(document, row.Key...)
		document = append(document, `,"value":`...)
		document = append(document, row.Value...)
		document = append(document, '}')
		return rows.Add(document, func() string { return dumpLine(row) })
	})
	if err != nil {
		return err // the document stays unfinished, so that nobody takes it for whole
	}
	e.notes(c, dumped.Notes)
	return rows.Close()
}

// dumpLine is a row for people.
func dumpLine(row maps.Row) string { return text(row.Key) + "  " + brief(row.Value, row.Sum) }

// brief is a value for people: of a per-CPU value the sum, if it has one.
func brief(value, sum []byte) string {
	if sum != nil && string(sum) != "null" {
		return text(sum)
	}
	return text(value)
}
