package commands

import (
	"context"
	"net/netip"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"bpfnet/bpf"
	"bpfnet/internal/blocklist"
	"bpfnet/internal/datapath"
	"bpfnet/internal/fault"
	"bpfnet/internal/feed"
	"bpfnet/output"
)

func blocklistCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:  "blocklist",
		Usage: "lists of addresses that are dropped or reported",
		Description: "Lists need no program to be loaded and outlive it. `bpfnet load blocklist` and `bpfnet attach tc|xdp|cgroup blocklist` put them in force. " +
			"In each list the longest prefix that covers an address counts; a packet is dropped if any list drops it, and goes on if the list \"allow\" covers the address.",
		Subcommands: []*cli.Command{
			blocklistAddCommand(env),
			blocklistRemoveCommand(env),
			blocklistImportCommand(env),
			blocklistListCommand(env),
			blocklistExportCommand(env),
			blocklistListsCommand(env),
			blocklistTestCommand(env),
			blocklistActionCommand(env),
			blocklistClearCommand(env),
			blocklistSyncCommand(env),
		},
	}
}

func listFlag() cli.Flag {
	return &cli.StringFlag{Name: "list", Value: blocklist.DefaultList, Usage: "`NAME` of the list"}
}

func expiresFlag() cli.Flag {
	return &cli.DurationFlag{Name: "expires", Usage: "entries end after this `TIME` (24h)"}
}

func forceFlag() cli.Flag {
	return &cli.BoolFlag{Name: "force", Usage: "take private and other special prefixes, this machine's addresses and its gateway, too"}
}

func blocklistAddCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:      "add",
		Usage:     "put addresses, prefixes, ranges and domains on a list",
		ArgsUsage: "ADDRESS|PREFIX|FIRST-LAST...",
		Description: "A domain is blocked by its addresses, which the system's resolver is asked for at once, and by `bpfnet blocklist sync` and `bpfnet watch alerts` when their time to live is over. " +
			"*.NAME is every name below NAME: `bpfnet watch alerts` blocks the addresses that it sees in answers, if the program dns is attached.",
		Flags: []cli.Flag{
			listFlag(), domainFlag(),
			&cli.DurationFlag{Name: "grace", Value: blocklist.DefaultGrace, Usage: "keep an address for this `TIME` after it left the answer of its domain"},
			&cli.StringFlag{Name: "reason", Usage: "`TEXT` to remember with the entries, up to 127 bytes"},
			expiresFlag(), forceFlag(),
		},
		Action: func(c *cli.Context) error {
			prefixes, domains, err := entryArgs(c)
			if err != nil {
				return err
			}
			lifetime, err := lifetime(c)
			if err != nil {
				return err
			}
			if c.Duration("grace") < time.Second {
				return usage(c, "--grace %s: the least is 1s", c.Duration("grace"))
			}
			return env.changeBlocklist(c, "added entries to", func(ctx context.Context, api blocklist.API) (blocklist.Change, error) {
				return api.Add(ctx, blocklist.AddRequest{
					List: c.String("list"), Prefixes: prefixes, Domains: domains, Grace: c.Duration("grace"), Reason: c.String("reason"), Lifetime: lifetime,
					Force: c.Bool("force"), DryRun: c.Bool("dry-run"),
				})
			})
		},
	}
}

func blocklistRemoveCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:      "remove",
		Usage:     "take entries off a list, given as they are listed",
		ArgsUsage: "ADDRESS|PREFIX|FIRST-LAST...",
		Flags:     []cli.Flag{listFlag(), domainFlag()},
		Action: func(c *cli.Context) error {
			prefixes, domains, err := entryArgs(c)
			if err != nil {
				return err
			}
			return env.changeBlocklist(c, "removed entries from", func(ctx context.Context, api blocklist.API) (blocklist.Change, error) {
				return api.Remove(ctx, blocklist.RemoveRequest{List: c.String("list"), Prefixes: prefixes, Domains: domains, DryRun: c.Bool("dry-run")})
			})
		},
	}
}

func blocklistActionCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:      "action",
		Usage:     "what happens to packets that a list covers; a new list alerts and drops",
		ArgsUsage: "[drop|alert|alert+drop]",
		Flags: []cli.Flag{
			listFlag(),
			&cli.StringFlag{Name: "match", Usage: "look up `ADDRESSES` of packets: source, destination or both"},
		},
		Action: func(c *cli.Context) error {
			request := blocklist.SetRequest{List: c.String("list"), DryRun: c.Bool("dry-run")}
			if err := args(c, "[drop|alert|alert+drop]"); err != nil {
				return err
			}
			var err error
			if c.NArg() > 0 {
				if request.Action, err = blocklist.ParseAction(c.Args().First()); err != nil {
					return err
				}
			}
			if c.IsSet("match") {
				if request.Match, err = blocklist.ParseMatch(c.String("match")); err != nil {
					return err
				}
			}
			if request.Action == "" && request.Match == "" {
				return usage(c, "nothing to change: give an action or --match")
			}
			return env.changeBlocklist(c, "changed what happens by", func(ctx context.Context, api blocklist.API) (blocklist.Change, error) {
				return api.Set(ctx, request)
			})
		},
	}
}

func blocklistClearCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:  "clear",
		Usage: "remove a list, or all of them",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "list", Usage: "`NAME` of the list; without it all lists, the allow list too"},
		},
		Action: func(c *cli.Context) error {
			if err := args(c); err != nil {
				return err
			}
			return env.changeBlocklist(c, "removed", func(ctx context.Context, api blocklist.API) (blocklist.Change, error) {
				return api.Clear(ctx, c.String("list"), c.Bool("dry-run"))
			})
		},
	}
}

func blocklistSyncCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:        "sync",
		Usage:       "clear entries that have expired, and ask for domains whose addresses may have changed",
		Description: "Expired entries are not in force from their end on; this frees their room. Every command that adds or removes entries does it, too. Domains are asked for when the time to live of their addresses is over.",
		Action: func(c *cli.Context) error {
			if err := args(c); err != nil {
				return err
			}
			return env.changeBlocklist(c, "updated", func(ctx context.Context, api blocklist.API) (blocklist.Change, error) {
				return api.Sync(ctx, c.Bool("dry-run"))
			})
		},
	}
}

func domainFlag() cli.Flag {
	return &cli.StringSliceFlag{Name: "domain", Usage: "`NAME` of a domain, *.NAME for all below it; may be repeated"}
}

// entryArgs reads the arguments as addresses, prefixes and ranges, and the domains.
func entryArgs(c *cli.Context) (all []netip.Prefix, domains []string, err error) {
	if !c.IsSet("domain") {
		if err := args(c, "ADDRESS..."); err != nil {
			return nil, nil, err
		}
	}
	for _, text := range c.Args().Slice() {
		prefixes, err := feed.ParseAddress(text)
		if err != nil {
			return nil, nil, badEntry(text, err)
		}
		all = append(all, prefixes...)
	}
	for _, text := range c.StringSlice("domain") {
		domain, err := feed.ParseDomain(text)
		if err != nil {
			return nil, nil, fault.New(fault.ErrUsage, "%w", err).Hint("evil.example, *.bad.example")
		}
		domains = append(domains, domain)
	}
	return all, domains, nil
}

func badEntry(text string, err error) error {
	bad := fault.New(fault.ErrUsage, "%w", err)
	if _, err := feed.ParseDomain(text); err == nil {
		return bad.Hint("--domain %s", text)
	}
	return bad.Hint("198.51.100.7, 198.51.100.0/24, 198.51.100.7-198.51.100.20, 2001:db8::/32")
}

func lifetime(c *cli.Context) (time.Duration, error) {
	d := c.Duration("expires")
	if c.IsSet("expires") && d <= 0 {
		return 0, usage(c, "--expires %s: must be more than 0", d)
	}
	return d, nil
}

// blocklistChange is the document of a writer.
type blocklistChange struct {
	Schema    string         `json:"schema"`
	Changed   bool           `json:"changed"`
	DryRun    bool           `json:"dry_run"`
	List      *string        `json:"list"` // null: all
	Added     uint64         `json:"added"`
	Updated   uint64         `json:"updated"`
	Removed   uint64         `json:"removed"`
	Unchanged uint64         `json:"unchanged"`
	Covered   uint64         `json:"covered"`
	Expired   uint64         `json:"expired"`
	Refused   uint64         `json:"refused"`
	Refusals  []refusedEntry `json:"refusals"`
	Entries   uint64         `json:"entries"`
	Notes     []string       `json:"notes"`

	Domains domainChange `json:"domains"`
}

// domainChange is what became of domains that were asked for.
type domainChange struct {
	Resolved         uint64         `json:"resolved"`
	Failed           uint64         `json:"failed"`
	Unanswered       uint64         `json:"unanswered"`
	Failures         []refusedEntry `json:"failures"`
	AddressesAdded   uint64         `json:"addresses_added"`
	AddressesRemoved uint64         `json:"addresses_removed"`
}

type refusedEntry struct {
	Entry string `json:"entry"`
	Cause string `json:"cause"`
}

func newBlocklistChange(change blocklist.Change, dryRun bool) blocklistChange {
	doc := blocklistChange{
		Schema: "bpfnet.blocklist_change/v1", Changed: change.Changed, DryRun: dryRun,
		Added: change.Added, Updated: change.Updated, Removed: change.Removed, Unchanged: change.Unchanged,
		Covered: change.Covered, Expired: change.Expired, Refused: change.RefusedN, Refusals: []refusedEntry{},
		Entries: change.Entries, Notes: list(change.Notes),
		Domains: domainChange{
			change.Resolved, change.FailedN, change.Unanswered, []refusedEntry{}, change.AddressesAdded, change.AddressesRemoved,
		},
	}
	if change.List != "" {
		doc.List = &change.List
	}
	for _, r := range change.Refused {
		doc.Refusals = append(doc.Refusals, refusedEntry{r.Where, r.Reason})
	}
	for _, r := range change.Failed {
		doc.Domains.Failures = append(doc.Domains.Failures, refusedEntry{r.Where, r.Reason})
	}
	return doc
}

// changeBlocklist makes a change and prints what it did.
func (e *Env) changeBlocklist(c *cli.Context, did string, change func(context.Context, blocklist.API) (blocklist.Change, error)) error {
	p, b, err := e.open(c)
	if err != nil {
		return err
	}
	defer b.Close()
	result, err := change(c.Context, b.Blocklist())
	if err != nil {
		return err
	}
	what := whichLists(result)
	e.done(c, p, done{changed: result.Changed, did: did + " " + what, already: what + " needed no change", notes: result.Notes})
	for _, r := range result.Refused {
		e.note(c, "refused: %s: %s", r.Where, r.Reason)
	}
	for _, r := range result.Failed {
		e.note(c, "not resolved: %s: %s", r.Where, r.Reason)
	}
	doc := newBlocklistChange(result, c.Bool("dry-run"))
	if err := p.Object(doc, func() output.Table { return changeTable(doc) }); err != nil {
		return err
	}
	if err := e.noteUnattachedBlocklist(c, b, result); err != nil {
		return err
	}
	return partial(result)
}

// partial is the error of a change that left something undone.
func partial(change blocklist.Change) error {
	switch {
	case change.RefusedN > 0 && change.List != "": // sync refuses the same addresses of domains each time
		return fault.New(fault.ErrPartial, "change %s: refused entries: %d; the others are in", whichLists(change), change.RefusedN)
	case change.Unanswered > 0:
		return fault.New(fault.ErrPartial, "resolve the domains of %s: no answer for %d of %d", whichLists(change), change.Unanswered, change.Resolved).
			Hint("bpfnet blocklist sync asks again; addresses that are known stay blocked")
	}
	return nil
}

func whichLists(change blocklist.Change) string {
	if change.List == "" {
		return "all lists"
	}
	return "list " + change.List
}

// noteUnattachedBlocklist says how to put lists in force that no program reads.
func (e *Env) noteUnattachedBlocklist(c *cli.Context, b Backend, change blocklist.Change) error {
	if change.Added == 0 {
		return nil
	}
	loaded, attachments, err := blocklistInstances(c.Context, b)
	switch {
	case err != nil:
		return err
	case loaded == "":
		e.note(c, "note: blocklist is not loaded, so nothing is blocked: bpfnet load blocklist; bpfnet attach tc blocklist --dev DEVICE --direction both")
	case len(attachments) == 0:
		e.note(c, "note: %s is not attached, so nothing is blocked: bpfnet attach tc %s --dev DEVICE --direction both", loaded, loaded)
	}
	return nil
}

// blocklistInstances returns where programs are attached that read the lists, and
// the name of an instance; "" if none is loaded.
func blocklistInstances(ctx context.Context, b Backend) (loaded string, attachments []datapath.Attachment, err error) {
	instances, err := b.Instances(ctx, "")
	for _, in := range instances {
		if readsLists(in) {
			loaded, attachments = in.Name, append(attachments, in.Attachments...)
		}
	}
	return loaded, attachments, err
}

// readsLists says whether an instance judges packets by the lists.
func readsLists(in datapath.Instance) bool {
	program, ok := bpf.Lookup(in.Source)
	return ok && in.Builtin && program.Shared == "blocklist" && in.Parameters["blocklist"] != "0"
}

func changeTable(d blocklistChange) output.Table {
	t := output.Table{Header: []string{"list", "entries", "added", "updated", "removed", "unchanged", "expired", "refused"}}
	name := "all"
	if d.List != nil {
		name = *d.List
	}
	row := []string{name}
	for _, n := range []uint64{d.Entries, d.Added, d.Updated, d.Removed, d.Unchanged, d.Expired, d.Refused} {
		row = append(row, output.Count(n))
	}
	t.Rows = [][]string{row}
	return t
}

func blocklistTestCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:      "test",
		Usage:     "which entries cover an address or a domain, and what would happen to packets; none is sent",
		ArgsUsage: "ADDRESS|DOMAIN",
		Action: func(c *cli.Context) error {
			if err := args(c, "ADDRESS|DOMAIN"); err != nil {
				return err
			}
			test, err := testOf(c.Args().First())
			if err != nil {
				return err
			}
			p, b, err := env.open(c)
			if err != nil {
				return err
			}
			defer b.Close()
			verdict, err := test(c.Context, b.Blocklist())
			if err != nil {
				return err
			}
			doc := newVerdict(verdict)
			return p.Object(doc, func() output.Table { return verdictTable(doc) })
		},
	}
}

// testOf returns the test of an address, or of a domain.
func testOf(text string) (func(context.Context, blocklist.API) (blocklist.Verdict, error), error) {
	if address, err := netip.ParseAddr(text); err == nil {
		return func(ctx context.Context, api blocklist.API) (blocklist.Verdict, error) { return api.Test(ctx, address) }, nil
	}
	domain, err := feed.ParseDomain(text)
	if err != nil || strings.HasPrefix(domain, "*.") {
		return nil, fault.New(fault.ErrUsage, "%q is neither an address nor a domain", text)
	}
	return func(ctx context.Context, api blocklist.API) (blocklist.Verdict, error) {
		return api.TestDomain(ctx, domain)
	}, nil
}

// blocklistVerdict is the document of blocklist test.
type blocklistVerdict struct {
	Schema  string       `json:"schema"`
	Address *string      `json:"address"`
	Domain  *string      `json:"domain"`
	Verdict string       `json:"verdict"`
	Entries []foundEntry `json:"entries"`
}

type foundEntry struct {
	entryDocument
	Decides bool `json:"decides"`
}

func newVerdict(v blocklist.Verdict) blocklistVerdict {
	doc := blocklistVerdict{Schema: "bpfnet.blocklist_test/v1", Verdict: v.Action, Entries: []foundEntry{}}
	if v.Domain != "" {
		doc.Domain = &v.Domain
	} else {
		address := v.Address.String()
		doc.Address = &address
	}
	for _, f := range v.Found {
		doc.Entries = append(doc.Entries, foundEntry{newEntryDocument(f.Entry), f.Decides})
	}
	return doc
}

func verdictTable(d blocklistVerdict) output.Table {
	about := "address"
	if d.Domain != nil {
		about = "domain"
	}
	what := optional(d.Address) + optional(d.Domain)
	t := output.Table{Header: []string{about, "verdict", "list", "entry", "action", "reason"}}
	for _, e := range d.Entries {
		t.Rows = append(t.Rows, []string{what, d.Verdict, e.List, e.subject(), e.Action, optional(e.Reason)})
	}
	if len(d.Entries) == 0 {
		t.Rows = append(t.Rows, []string{what, d.Verdict})
	}
	return t
}
