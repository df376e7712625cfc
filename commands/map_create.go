package commands

import (
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"bpfnet/internal/fault"
	"bpfnet/internal/maps"
	"bpfnet/output"
)

type mapFreezeDoc struct {
	Schema string `json:"schema"`
	maps.Frozen
	DryRun bool `json:"dry_run"`
}

func mapCreateCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:      "create",
		Usage:     "make a map, and pin it at a path in bpffs",
		ArgsUsage: "PATH",
		Description: "A map of that shape that is pinned there already is no change, any other a conflict. " +
			"bpftool's words are understood, too: PATH type hash key 4 value 8 entries 100 name NAME [flags N] [inner_map MAP].",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "type", Usage: "`TYPE` of the map: hash, array, lru_hash, lpm_trie, …"},
			&cli.UintFlag{Name: "key-size", DefaultText: "0", Usage: "`BYTES` of a key"},
			&cli.UintFlag{Name: "value-size", DefaultText: "0", Usage: "`BYTES` of a value"},
			&cli.UintFlag{Name: "max-entries", DefaultText: "0", Usage: "room for `N` entries; of a ring buffer its bytes"},
			&cli.UintFlag{Name: "flags", DefaultText: "0", Usage: "the kernel's BPF_F_… as a number `N`: 1 is BPF_F_NO_PREALLOC"},
			&cli.StringFlag{Name: "name", DefaultText: "that of the pin", Usage: "`NAME` in the kernel, which keeps 15 characters"},
			&cli.StringFlag{Name: "inner", Usage: "the pattern `MAP` of those that a map of maps holds"},
		},
		Action: func(c *cli.Context) error {
			request, err := createRequest(c)
			if err != nil {
				return err
			}
			return env.changePin(c, func(api maps.API) (maps.PinChange, done, error) {
				change, err := api.Create(c.Context, request)
				return change, done{
					did:     fmt.Sprintf("created %s map %s", request.Type, change.Map),
					already: fmt.Sprintf("%s is there already", change.Map),
				}, err
			})
		},
	}
}

// createRequest reads the flags of "map create", or bpftool's words for them.
func createRequest(c *cli.Context) (r maps.CreateRequest, err error) {
	words := c.Args().Slice()
	if len(words) == 0 || words[0] == "" {
		return r, args(c, "PATH")
	}
	values, err := createWords(words[1:])
	if err != nil {
		return r, fault.New(fault.ErrUsage, "%w", err).Hint("see: %s --help", commandName(c))
	}
	for _, flag := range []string{"type", "key-size", "value-size", "max-entries", "flags", "name", "inner"} {
		if _, twice := values[flag]; twice && c.IsSet(flag) {
			return r, usage(c, "%s is given as a flag and as a word", dashed(flag))
		}
		if c.IsSet(flag) {
			values[flag] = fmt.Sprint(c.Value(flag))
		}
	}
	r = maps.CreateRequest{Type: values["type"], Name: values["name"], Inner: values["inner"], DryRun: c.Bool("dry-run")}
	if r.Type == "" {
		return r, usage(c, "flag --type is missing")
	}
	if _, err := oneOf("type", r.Type, maps.TypeWords()...); err != nil {
		return r, err
	}
	for flag, to := range map[string]*uint32{"key-size": &r.KeySize, "value-size": &r.ValueSize, "max-entries": &r.MaxEntries, "flags": &r.Flags} {
		if *to, err = number32(flag, values[flag]); err != nil {
			return r, err
		}
	}
	r.Path, err = filepath.Abs(words[0])
	return r, err
}

// createWords reads bpftool's words behind the path, by the names of the flags
// that they stand for.
func createWords(words []string) (map[string]string, error) {
	flags := map[string]string{
		"type": "type", "key": "key-size", "value": "value-size", "entries": "max-entries", "flags": "flags", "name": "name", "inner_map": "inner",
	}
	values := map[string]string{}
	for len(words) > 0 {
		word := words[0]
		flag, known := flags[word]
		_, twice := values[flag]
		switch {
		case word == "dev":
			return nil, fault.New(fault.ErrUsage, "dev: maps of a device, for offloaded programs, are not made")
		case !known:
			return nil, fault.New(fault.ErrUsage, "unexpected argument %q", word)
		case twice:
			return nil, fault.New(fault.ErrUsage, "%s is given twice", word)
		case len(words) == 1 || words[1] == "":
			return nil, fault.New(fault.ErrUsage, "%q: the word after it is missing", word)
		}
		values[flag], words = words[1], words[2:]
		if flag == "inner" {
			var err error
			if values[flag], words, err = objectWords(slices.Concat([]string{values[flag]}, words)); err != nil {
				return nil, err
			}
		}
	}
	return values, nil
}

// number32 reads the value of a flag that has 32 bits; nothing is 0.
func number32(flag, text string) (uint32, error) {
	if text == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(text, 0, 32)
	if err != nil {
		return 0, fault.New(fault.ErrUsage, "%s %q: not such a value", dashed(flag), text).Hint("a whole number, at most %d", uint32(math.MaxUint32))
	}
	return uint32(n), nil
}

func mapFreezeCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:        "freeze",
		Usage:       "keep processes from changing a map, for good",
		ArgsUsage:   "MAP",
		Description: "Programs can still change it. Nothing takes that back.",
		Action: func(c *cli.Context) error {
			w, err := mapArgs(c, "MAP")
			if err != nil {
				return err
			}
			p, b, err := env.open(c)
			if err != nil {
				return err
			}
			defer b.Close()
			frozen, err := b.Maps().Freeze(c.Context, maps.FreezeRequest{Map: w.ref, DryRun: c.Bool("dry-run")})
			if err != nil {
				return err
			}
			if printsNull(c) {
				return p.Object(nil, nil)
			}
			env.done(c, p, done{changed: frozen.Changed, did: "frozen " + frozen.Map, already: frozen.Map + " is frozen already"})
			return p.Object(mapFreezeDoc{"bpfnet.map_freeze/v1", frozen, c.Bool("dry-run")}, func() output.Table { return output.Table{} })
		},
	}
}

// typeCandidates are the map types that complete --type.
func typeCandidates(path []string) []string {
	if strings.Join(path, " ") == "map create" {
		return maps.TypeWords()
	}
	return nil
}
