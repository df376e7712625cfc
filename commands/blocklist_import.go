package commands

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v2"

	"bpfnet/internal/blocklist"
	"bpfnet/internal/fault"
	"bpfnet/internal/feed"
)

func blocklistImportCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:      "import",
		Usage:     "put what files hold on a list, in one step for packets; - is standard input",
		ArgsUsage: "FILE|-...",
		Description: "One address, prefix or range a line; ipset save files, nft set listings, Spamhaus DROP (text and JSON), CSV, JSON, NDJSON, and what bpfnet blocklist export prints. " +
			"Entries that are wrong or would lock people out are refused and told; the others go in, and the exit code is 8. Names are not looked up: domains are refused.",
		Flags: []cli.Flag{
			listFlag(),
			&cli.BoolFlag{Name: "replace", Usage: "remove the entries that the files don't have"},
			&cli.BoolFlag{Name: "aggregate", Usage: "leave out entries that others cover"},
			&cli.BoolFlag{Name: "strict", Usage: "change nothing if an entry is refused"},
			&cli.StringFlag{Name: "format", Usage: "read the files as `FORMAT`: " + strings.Join(feed.Formats(), ", ")},
			&cli.StringFlag{Name: "column", Usage: "the `COLUMN` of CSV with the addresses: its name, or its number from 1"},
			expiresFlag(), forceFlag(),
		},
		Action: func(c *cli.Context) error {
			if err := args(c, "FILE..."); err != nil {
				return err
			}
			request, options, err := env.importRequest(c)
			if err != nil {
				return err
			}
			return env.changeBlocklist(c, "imported into", func(ctx context.Context, api blocklist.API) (blocklist.Change, error) {
				feeds, err := env.readFeeds(c)
				if err != nil {
					return blocklist.Change{}, err
				}
				request.Read = reader(request, feeds, options)
				return api.Import(ctx, request)
			})
		},
	}
}

func (e *Env) importRequest(c *cli.Context) (blocklist.ImportRequest, feed.Options, error) {
	options := feed.Options{Column: c.String("column"), Now: e.Now()}
	var err error
	if c.IsSet("format") {
		if options.Format, err = feed.ParseFormat(c.String("format")); err != nil {
			return blocklist.ImportRequest{}, options, err
		}
	}
	ends, err := lifetime(c)
	return blocklist.ImportRequest{
		List: c.String("list"), Lifetime: ends, Replace: c.Bool("replace"), Aggregate: c.Bool("aggregate"),
		Strict: c.Bool("strict"), Force: c.Bool("force"), DryRun: c.Bool("dry-run"),
	}, options, err
}

// feedText is all that a file holds.
type feedText struct {
	source string
	text   []byte
}

// readFeeds reads the files as a whole, before there is a lock that others wait
// for: what comes out of a pipe may take its time, or be an export.
func (e *Env) readFeeds(c *cli.Context) (all []feedText, err error) {
	for _, name := range c.Args().Slice() {
		source, input, err := e.input(c.Context, name)
		if err != nil {
			return nil, err
		}
		text, err := io.ReadAll(input)
		input.Close()
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", source, err)
		}
		all = append(all, feedText{source, text})
	}
	return all, nil
}

// reader passes on what files hold. A download that failed must not empty a list.
func reader(r blocklist.ImportRequest, feeds []feedText, o feed.Options) func(func(blocklist.Item) error, func(blocklist.Refusal)) error {
	return func(add func(blocklist.Item) error, refuse func(blocklist.Refusal)) error {
		found, refused := false, []blocklist.Refusal(nil)
		for _, f := range feeds {
			err := f.read(o, func(item blocklist.Item) error {
				found = true
				return add(item)
			}, func(r blocklist.Refusal) {
				refuse(r)
				refused = append(refused[:0], r)
			})
			if err != nil {
				return err
			}
		}
		if r.Replace && !found {
			return noEntry(r.List, refused)
		}
		return nil
	}
}

func noEntry(list string, refused []blocklist.Refusal) error {
	err := fault.New(fault.ErrUsage, "import into list %s: the input has no entry, and --replace would remove all", list)
	for _, r := range refused {
		err = err.Hint("what was refused last: %s: %s", r.Where, r.Reason)
	}
	return err.Hint("bpfnet blocklist clear --list %s", list)
}

func (f feedText) read(o feed.Options, add func(blocklist.Item) error, refuse func(blocklist.Refusal)) error {
	o.Name = f.source
	bad := func(err feed.LineError) {
		where, cause, _ := strings.Cut(err.Error(), ": ")
		refuse(blocklist.Refusal{Where: where, Reason: cause})
	}
	return feed.Read(bytes.NewReader(f.text), o, func(entry feed.Entry) error {
		if entry.Domain != "" {
			bad(feed.LineError{Name: f.source, Line: entry.Line, Column: entry.Column, Err: errDomain})
			return nil
		}
		return add(blocklist.Item{
			Prefix: entry.Prefix, Reason: entry.Reason, Expires: entry.Expires, Source: f.source, Line: entry.Line, Column: entry.Column,
		})
	}, bad)
}

var errDomain = errors.New("names are not looked up: give addresses")
