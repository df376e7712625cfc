package commands

import (
	"cmp"
	"encoding/json"
	"errors"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"bpfnet/internal/alert"
	"bpfnet/internal/blocklist"
	"bpfnet/internal/sample"
	"bpfnet/output"
)

// entryDocument is an entry of a list.
type entryDocument struct {
	List      string     `json:"list"`
	Prefix    *string    `json:"prefix"`
	Domain    *string    `json:"domain"`
	FoundBy   *string    `json:"found_by"`
	Status    *string    `json:"status"`
	CheckedAt *time.Time `json:"checked_at"`
	Action    string     `json:"action"`
	Reason    *string    `json:"reason"`
	ExpiresAt *time.Time `json:"expires_at"`
	Packets   *uint64    `json:"packets"`
	Bytes     *uint64    `json:"bytes"`
	LastSeen  *time.Time `json:"last_seen"`
}

type entryRow struct {
	Schema string `json:"schema"`
	entryDocument
}

func newEntryDocument(e blocklist.Entry) entryDocument {
	d := entryDocument{
		List: e.List, Domain: alert.Known(e.Domain), FoundBy: alert.Known(string(e.FoundBy)), Status: alert.Known(string(e.Status)), CheckedAt: alert.Known(e.Checked),
		Action: string(e.Action), Reason: alert.Known(e.Reason), ExpiresAt: alert.Known(e.Expires),
	}
	if e.Prefix.IsValid() {
		d.Prefix = alert.Known(e.Prefix.String())
	}
	if e.Hits == nil {
		return d
	}
	d.Packets, d.Bytes, d.LastSeen = &e.Hits.Packets, &e.Hits.Bytes, alert.Known(e.Hits.LastSeen)
	return d
}

// subject is what an entry lists: a prefix, a domain, or an address and its domain.
func (d entryDocument) subject() string {
	switch {
	case d.Prefix == nil:
		return optional(d.Domain)
	case d.Domain == nil:
		return *d.Prefix
	}
	return *d.Prefix + " of " + *d.Domain
}

// everyListFlag chooses a list; without it all of them.
func everyListFlag() cli.Flag {
	return &cli.StringFlag{Name: "list", Usage: "`NAME` of the list; without it all lists"}
}

func blocklistListCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:  "list",
		Usage: "the entries of a list, or of all, sorted by list and address",
		Flags: []cli.Flag{
			everyListFlag(),
			&cli.BoolFlag{Name: "hits", Usage: "with the packets and bytes that each entry was hit by; the most hit ones come first"},
			&cli.StringFlag{Name: "sort", Usage: "`FIELD` to sort by; -FIELD is descending; fields: " + strings.Join(entryFields.Names(), ", ") + "; hits, bytes and last_seen imply --hits"},
			&cli.Uint64Flag{Name: "limit", Usage: "at most `N` entries; 0: all"},
		},
		Action: func(c *cli.Context) error {
			if err := args(c); err != nil {
				return err
			}
			order, hits, err := entryOrder(c)
			if err != nil {
				return err
			}
			p, b, err := env.open(c)
			if err != nil {
				return err
			}
			defer b.Close()
			if order != "" {
				return printSorted(c, p, b.Blocklist(), order, hits)
			}
			return printEntries(c, p, b.Blocklist(), entryLine, nil)
		},
	}
}

func blocklistExportCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:        "export",
		Usage:       "the entries of a list, for `bpfnet blocklist import`",
		Description: "The table format is one prefix a line, with the reason as a comment; the others have everything.",
		Flags:       []cli.Flag{listFlag()},
		Action: func(c *cli.Context) error {
			if err := args(c); err != nil {
				return err
			}
			p, b, err := env.open(c)
			if err != nil {
				return err
			}
			defer b.Close()
			return printEntries(c, p, b.Blocklist(), exportLine, isGiven)
		},
	}
}

// isGiven says whether an entry was given by users: addresses of domains are not.
func isGiven(e blocklist.Entry) bool { return e.FoundBy == "" }

// printEntries writes entries as they are read, or those that are chosen.
func printEntries(c *cli.Context, p *output.Printer, api blocklist.API, line func(entryDocument) string, chosen func(blocklist.Entry) bool) error {
	rows, written, limit := p.Rows(), uint64(0), c.Uint64("limit")
	err := api.Entries(c.Context, c.String("list"), false, func(e blocklist.Entry) error {
		if chosen != nil && !chosen(e) {
			return nil
		}
		if limit > 0 && written == limit {
			return errEnough
		}
		written++
		return addRow(rows, newEntryDocument(e), line)
	})
	if err != nil && !errors.Is(err, errEnough) {
		return err
	}
	return rows.Close()
}

// errEnough ends what is read when there are as many entries or alerts as were asked for.
var errEnough = errors.New("enough")

// entryFields are what entries can be sorted by. What never ends ends last.
var entryFields = sample.Fields[blocklist.Entry]{
	"list": sample.By(func(e blocklist.Entry) string { return e.List }),
	"prefix": func(a, b blocklist.Entry) int {
		return cmp.Or(a.Prefix.Addr().Compare(b.Prefix.Addr()), cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()), cmp.Compare(a.Domain, b.Domain))
	},
	"expires":   func(a, b blocklist.Entry) int { return cmp.Compare(end(a), end(b)) },
	"hits":      sample.By(func(e blocklist.Entry) uint64 { return e.Hits.Packets }),
	"bytes":     sample.By(func(e blocklist.Entry) uint64 { return e.Hits.Bytes }),
	"last_seen": func(a, b blocklist.Entry) int { return a.Hits.LastSeen.Compare(b.Hits.LastSeen) },
}

func end(e blocklist.Entry) int64 {
	if e.Expires.IsZero() {
		return math.MaxInt64
	}
	return e.Expires.Unix()
}

// entryOrder is the order that is asked for, "" for that in which entries are
// read, and whether hits are.
func entryOrder(c *cli.Context) (order string, hits bool, err error) {
	order, hits = c.String("sort"), c.Bool("hits")
	if !c.IsSet("sort") {
		if hits {
			order = "-hits"
		}
		return order, hits, nil
	}
	switch strings.TrimPrefix(order, "-") {
	case "hits", "bytes", "last_seen":
		hits = true
	}
	return order, hits, entryFields.Check(order)
}

// printSorted writes entries in an order; those that are alike by list and
// address.
func printSorted(c *cli.Context, p *output.Printer, api blocklist.API, order string, hits bool) error {
	var all []blocklist.Entry
	err := api.Entries(c.Context, c.String("list"), hits, func(e blocklist.Entry) error {
		all = append(all, e)
		return nil
	})
	if err != nil {
		return err
	}
	slices.SortStableFunc(all, entryFields.Compare(order))
	if n := c.Uint64("limit"); n > 0 && n < uint64(len(all)) {
		all = all[:n]
	}
	line := entryLine
	if hits {
		line = hitLine
	}
	rows := p.Rows()
	for _, e := range all {
		if err := addRow(rows, newEntryDocument(e), line); err != nil {
			return err
		}
	}
	return rows.Close()
}

func addRow(rows *output.Rows, d entryDocument, line func(entryDocument) string) error {
	text, err := json.Marshal(entryRow{"bpfnet.blocklist_entry/v1", d})
	if err != nil {
		return err
	}
	return rows.Add(text, func() string { return line(d) })
}

func entryLine(d entryDocument) string {
	parts := []string{d.List, d.subject(), d.Action}
	if d.Status != nil {
		parts = append(parts, *d.Status)
	}
	if d.ExpiresAt != nil {
		parts = append(parts, "until "+d.ExpiresAt.Format(time.RFC3339))
	}
	if d.Reason != nil {
		parts = append(parts, *d.Reason)
	}
	return strings.Join(parts, "  ")
}

func hitLine(d entryDocument) string {
	parts := []string{d.List, d.subject(), d.Action, output.Count(*d.Packets) + " packets", output.Bytes(*d.Bytes)}
	if d.LastSeen != nil {
		parts = append(parts, "last "+d.LastSeen.Format(time.RFC3339))
	}
	if d.Reason != nil {
		parts = append(parts, *d.Reason)
	}
	return strings.Join(parts, "  ")
}

func exportLine(d entryDocument) string {
	if d.Reason == nil {
		return d.subject()
	}
	return d.subject() + "  # " + *d.Reason
}

func blocklistListsCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:  "lists",
		Usage: "all lists: what they do, how large they are, and what became of packets",
		Action: func(c *cli.Context) error {
			if err := args(c); err != nil {
				return err
			}
			p, b, err := env.open(c)
			if err != nil {
				return err
			}
			defer b.Close()
			overview, err := b.Blocklist().Overview(c.Context)
			if err != nil {
				return err
			}
			doc := struct {
				Schema string `json:"schema"`
				blocklist.Overview
			}{"bpfnet.blocklist_lists/v1", overview}
			return p.Object(doc, func() output.Table { return listsTable(overview) })
		},
	}
}

func listsTable(o blocklist.Overview) output.Table {
	t := output.Table{Header: []string{"list", "action", "match", "ipv4", "ipv6", "domains", "memory", "changed"}}
	for _, l := range o.Lists {
		t.Rows = append(t.Rows, []string{
			l.Name, string(l.Action), string(l.Match), output.Count(l.IPv4), output.Count(l.IPv6), output.Count(l.Domains), output.Bytes(l.MemoryBytes),
			l.ChangedAt.Format(time.RFC3339),
		})
	}
	if o.MemoryBytes > 0 {
		t.Footer = []string{"all", "", "", "", "", "", output.Bytes(o.MemoryBytes)}
	}
	return t
}
