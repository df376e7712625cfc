package commands

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"bpfnet/internal/datapath"
	"bpfnet/internal/fault"
	"bpfnet/output"
)

// statusInterval is the time between two samples unless told otherwise.
const statusInterval = 2 * time.Second

type statusDoc struct {
	Schema          string           `json:"schema"`
	Time            time.Time        `json:"time"`
	IntervalSeconds *float64         `json:"interval_seconds"` // null: no rates were measured
	Instances       []instanceStatus `json:"instances"`
	Blocklist       *listsStatus     `json:"blocklist"` // null: there are no such maps, or the instance asked for has none of them
}

// listsStatus is all lists of the blocklist, which need no instance.
type listsStatus struct {
	Lists       int    `json:"lists"`
	Entries     uint64 `json:"entries"`
	MemoryBytes uint64 `json:"memory_bytes"`
}

type instanceStatus struct {
	Name        string            `json:"name"`
	Source      string            `json:"source"`
	Builtin     bool              `json:"builtin"`
	Parameters  map[string]string `json:"parameters"`
	Programs    []programStatus   `json:"programs"`
	Maps        []datapath.MapRef `json:"maps"`
	Attachments []linkDoc         `json:"attachments"`
}

// programStatus is a program with what it did between two samples; null when
// only one was taken.
type programStatus struct {
	datapath.Program
	RunsPerSecond    *float64 `json:"runs_per_second"`
	AverageRunTimeNS *float64 `json:"average_run_time_ns"` // null too when it didn't run
}

func statusCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:      "status",
		Usage:     "what is loaded and where it is attached; with --interval how often and how long it runs",
		ArgsUsage: "[NAME]",
		Flags:     tickFlags(statusInterval),
		Action:    env.status,
	}
}

func (e *Env) status(c *cli.Context) error {
	if err := args(c, "[NAME]"); err != nil {
		return err
	}
	t, err := readTicks(c)
	if err != nil {
		return err
	}
	p, b, err := e.open(c)
	if err != nil {
		return err
	}
	defer b.Close()
	name := c.Args().First()
	if c.IsSet("interval") || c.IsSet("count") || c.IsSet("once") {
		return e.watchStatus(c.Context, p, b, name, t)
	}
	doc, instances, err := e.readStatus(c.Context, b, name)
	if err != nil {
		return err
	}
	if len(instances) == 0 && p.Format() == output.FormatTable {
		e.note(c, "nothing is loaded")
	}
	return p.Object(doc, doc.table)
}

// watchStatus has the kernel measure run times while it takes samples.
func (e *Env) watchStatus(ctx context.Context, p *output.Printer, b Backend, name string, t ticks) (err error) {
	stop, err := b.EnableStats()
	if err != nil {
		return err
	}
	defer func() { err = fault.Join(err, stop()) }()
	before, err := b.Instances(ctx, name)
	if err != nil {
		return err
	}
	last := e.Now()
	return t.run(ctx, func() error {
		doc, after, err := e.readStatus(ctx, b, name)
		if err != nil {
			return err
		}
		now := e.Now()
		doc.rates(before, now.Sub(last))
		before, last = after, now
		return p.Event(doc, doc.table)
	})
}

func (e *Env) readStatus(ctx context.Context, b Backend, name string) (*statusDoc, []datapath.Instance, error) {
	instances, err := b.Instances(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	doc := newStatus(e.Now(), instances)
	if name != "" && !slices.ContainsFunc(instances, readsLists) {
		return doc, instances, nil
	}
	overview, err := b.Blocklist().Overview(ctx)
	if err != nil {
		return nil, nil, err
	}
	lists := listsStatus{Lists: len(overview.Lists), MemoryBytes: overview.MemoryBytes}
	for _, list := range overview.Lists {
		lists.Entries += list.Entries
	}
	if lists != (listsStatus{}) {
		doc.Blocklist = &lists
	}
	return doc, instances, nil
}

func newStatus(now time.Time, instances []datapath.Instance) *statusDoc {
	doc := &statusDoc{Schema: "bpfnet.status/v1", Time: now.UTC().Truncate(time.Second), Instances: []instanceStatus{}}
	for _, in := range instances {
		s := instanceStatus{Name: in.Name, Source: in.Source, Builtin: in.Builtin, Parameters: in.Parameters,
			Programs: []programStatus{}, Maps: list(in.Maps), Attachments: []linkDoc{}}
		if s.Parameters == nil {
			s.Parameters = map[string]string{}
		}
		for _, p := range in.Programs {
			p.MapIDs = list(p.MapIDs)
			s.Programs = append(s.Programs, programStatus{Program: p})
		}
		for _, a := range in.Attachments {
			s.Attachments = append(s.Attachments, newLinkDoc(a))
		}
		doc.Instances = append(doc.Instances, s)
	}
	return doc
}

// rates fills in what happened since an earlier reading.
func (d *statusDoc) rates(before []datapath.Instance, interval time.Duration) {
	seconds := interval.Seconds()
	d.IntervalSeconds = &seconds
	earlier := map[datapath.ObjectID]datapath.Program{}
	for _, p := range allPrograms(before) {
		earlier[p.ID] = p
	}
	for _, in := range d.Instances {
		for i := range in.Programs {
			in.Programs[i].rate(earlier[in.Programs[i].ID], seconds)
		}
	}
}

func (p *programStatus) rate(before datapath.Program, seconds float64) {
	if p.RunCount == nil || p.RunTimeNS == nil || seconds <= 0 {
		return
	}
	runs := float64(*p.RunCount - min(pointed(before.RunCount), *p.RunCount))
	perSecond := runs / seconds
	p.RunsPerSecond = &perSecond
	if runs > 0 {
		average := float64(*p.RunTimeNS-min(pointed(before.RunTimeNS), *p.RunTimeNS)) / runs
		p.AverageRunTimeNS = &average
	}
}

// table has a line for each attachment, one for an instance without any, and one
// for the lists of the blocklist.
func (d *statusDoc) table() output.Table {
	t := output.Table{Header: []string{"name", "program", "hook", "target", "mechanism", "state", "maps in use", "runs", "average"}}
	for _, in := range d.Instances {
		fill := in.fill()
		if len(in.Attachments) == 0 {
			t.Rows = append(t.Rows, []string{in.Name, "", "", "", "", "loaded", fill, "", ""})
		}
		for _, a := range in.Attachments {
			runs, average := in.cost(a.ProgID)
			t.Rows = append(t.Rows, []string{in.Name, a.Program, a.Hook, target(a.Attachment), how(a.Attachment), state(a.Attachment, attached), fill, runs, average})
			fill = ""
		}
	}
	if d.Blocklist != nil {
		t.Rows = append(t.Rows, []string{"blocklist lists", "", "", "", "", "", d.Blocklist.fill(), "", ""})
	}
	return t
}

func (s listsStatus) fill() string {
	return output.Count(s.Entries) + " entries, " + output.Bytes(s.MemoryBytes)
}

// fill says how full the maps are that have entries in use.
func (s instanceStatus) fill() string {
	var parts []string
	for _, m := range s.Maps {
		if pointed(m.Entries) > 0 {
			parts = append(parts, m.Name+" "+strconv.FormatUint(*m.Entries, 10)+"/"+strconv.FormatUint(uint64(m.MaxEntries), 10))
		}
	}
	return strings.Join(parts, ", ")
}

func (s instanceStatus) cost(progID datapath.ObjectID) (runs, average string) {
	for _, p := range s.Programs {
		if p.ID != progID {
			continue
		}
		if p.RunsPerSecond != nil {
			runs = output.PerSecond(*p.RunsPerSecond)
		}
		if p.AverageRunTimeNS != nil {
			average = strconv.FormatFloat(*p.AverageRunTimeNS, 'f', 0, 64) + " ns"
		}
	}
	return runs, average
}
