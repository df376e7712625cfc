package commands

import (
	"context"
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
			"Entries that are wrong or would lock people out are refused and told; the others go in, and the exit code is 8. Domains are asked for as `bpfnet blocklist sync` does it, after all entries are in force.",
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
			request, err := env.importRequest(c)
			if err != nil {
				return err
			}
			return env.changeBlocklist(c, "imported into", func(ctx context.Context, api blocklist.API) (blocklist.Change, error) {
				return api.Import(ctx, request)
			})
		},
	}
}

func (e *Env) importRequest(c *cli.Context) (blocklist.ImportRequest, error) {
	options := feed.Options{Column: c.String("column"), Now: e.Now()}
	var err error
	if c.IsSet("format") {
		if options.Format, err = feed.ParseFormat(c.String("format")); err != nil {
			return blocklist.ImportRequest{}, err
		}
	}
	ends, err := lifetime(c)
	return blocklist.ImportRequest{
		List: c.String("list"), Read: e.reader(c, options), Lifetime: ends, Replace: c.Bool("replace"), Aggregate: c.Bool("aggregate"),
		Strict: c.Bool("strict"), Force: c.Bool("force"), DryRun: c.Bool("dry-run"),
	}, err
}

// reader reads the files one after the other. A download that failed must not
// empty a list.
func (e *Env) reader(c *cli.Context, o feed.Options) func(func(blocklist.Item) error, func(blocklist.Refusal)) error {
	return func(add func(blocklist.Item) error, refuse func(blocklist.Refusal)) error {
		found, refused := false, []blocklist.Refusal(nil)
		for _, name := range c.Args().Slice() {
			err := e.readFeed(c.Context, name, o, func(item blocklist.Item) error {
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
		if c.Bool("replace") && !found {
			return noEntry(c.String("list"), refused)
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

func (e *Env) readFeed(ctx context.Context, name string, o feed.Options, add func(blocklist.Item) error, refuse func(blocklist.Refusal)) error {
	source, input, err := e.input(ctx, name)
	if err != nil {
		return err
	}
	defer input.Close()
	o.Name = source
	bad := func(err feed.LineError) {
		where, cause, _ := strings.Cut(err.Error(), ": ")
		refuse(blocklist.Refusal{Where: where, Reason: cause})
	}
	return feed.Read(input, o, func(entry feed.Entry) error {
		return add(blocklist.Item{
			Prefix: entry.Prefix, Domain: entry.Domain, Reason: entry.Reason, Expires: entry.Expires, Source: source, Line: entry.Line, Column: entry.Column,
		})
	}, bad)
}
