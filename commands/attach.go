package commands

import (
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"bpfnet/internal/datapath"
	"bpfnet/output"
)

// attachedDoc is the document of attach and detach: what all attachments have
// in common, null where they differ, and each of them.
type attachedDoc struct {
	Schema      string                `json:"schema"`
	Changed     bool                  `json:"changed"`
	DryRun      bool                  `json:"dry_run"`
	Name        *string               `json:"name"`
	Program     *string               `json:"program"`
	Hook        *string               `json:"hook"`
	Mechanism   *string               `json:"mechanism"`
	Mode        *string               `json:"mode"`
	DevName     *string               `json:"devname"`
	IfIndex     *uint32               `json:"ifindex"`
	NetNS       *uint64               `json:"netns"`
	Cgroup      *string               `json:"cgroup"`
	CgroupID    *string               `json:"cgroup_id"`
	Target      *string               `json:"target"`
	ProgID      *datapath.ObjectID    `json:"prog_id"`
	LinkID      *uint32               `json:"link_id"`
	Pinned      *string               `json:"pinned"`
	Attachments []datapath.Attachment `json:"attachments"`
}

func newAttachedDoc(answer datapath.Attached, dryRun bool) attachedDoc {
	items := list(answer.Attachments)
	doc := attachedDoc{
		Schema:      "bpfnet.attachment/v1",
		Changed:     answer.Changed,
		DryRun:      dryRun,
		Name:        shared(items, func(a datapath.Attachment) *string { return &a.Name }),
		Program:     shared(items, func(a datapath.Attachment) *string { return &a.Program }),
		Hook:        shared(items, func(a datapath.Attachment) *string { return &a.Hook }),
		Mechanism:   shared(items, func(a datapath.Attachment) *string { return &a.Mechanism }),
		Mode:        shared(items, func(a datapath.Attachment) *string { return a.Mode }),
		DevName:     shared(items, func(a datapath.Attachment) *string { return a.DevName }),
		IfIndex:     shared(items, func(a datapath.Attachment) *uint32 { return a.IfIndex }),
		NetNS:       shared(items, func(a datapath.Attachment) *uint64 { return a.NetNS }),
		Cgroup:      shared(items, func(a datapath.Attachment) *string { return a.Cgroup }),
		CgroupID:    shared(items, func(a datapath.Attachment) *string { return a.CgroupID }),
		Target:      shared(items, func(a datapath.Attachment) *string { return a.Target }),
		ProgID:      shared(items, func(a datapath.Attachment) *datapath.ObjectID { return &a.ProgID }),
		LinkID:      shared(items, func(a datapath.Attachment) *uint32 { return a.LinkID }),
		Pinned:      shared(items, func(a datapath.Attachment) *string { return a.Pinned }),
		Attachments: items,
	}
	if doc.Name == nil && answer.Name != "" {
		doc.Name = &answer.Name
	}
	return doc
}

// shared returns the value that a field has in every attachment, nil when they
// differ or there are none.
func shared[T comparable](items []datapath.Attachment, field func(datapath.Attachment) *T) *T {
	if len(items) == 0 {
		return nil
	}
	first := field(items[0])
	for _, a := range items[1:] {
		value := field(a)
		if first == nil || value == nil || *value != *first {
			return nil
		}
	}
	return first
}

func attachCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:  "attach",
		Usage: "run a loaded program on a hook",
		Subcommands: []*cli.Command{
			env.attachHook("tc", "on the traffic of an interface", slices.Concat(devFlags(), []cli.Flag{allPodsFlag(hostSide), followFlag(), directionFlag()}, positionFlags())...),
			env.attachHook("xdp", "on the packets that an interface receives, before anything else", append(devFlags(),
				&cli.StringFlag{Name: "mode", Value: string(datapath.ModeAuto), Usage: "`MODE`: auto (native, else generic), native, generic or offload"})...),
			env.attachHook("sockops", "on the TCP connections of a cgroup", cgroupFlags()...),
			env.attachHook("cgroup", "on the traffic of a cgroup's sockets", append(cgroupFlags(), allPodsFlag(theCgroup), directionFlag())...),
			env.attachHook("trace", "on the tracepoints or kernel functions that it names"),
		},
	}
}

func devFlag() *cli.StringFlag {
	return &cli.StringFlag{Name: "dev", Usage: "network `INTERFACE`"}
}

func cgroupFlag() *cli.StringFlag {
	return &cli.StringFlag{Name: "cgroup", Usage: "`DIR` of the cgroup, below /sys/fs/cgroup"}
}

func directionFlag() *cli.StringFlag {
	return &cli.StringFlag{Name: "direction", Usage: "`WAY` as the hook sees it: ingress, egress or both"}
}

func progFlag() *cli.StringFlag {
	return &cli.StringFlag{Name: "prog", Usage: "`FUNCTION`, when several programs of the object fit the hook"}
}

func positionFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "first", Usage: "before all other programs"},
		&cli.BoolFlag{Name: "last", Usage: "after all other programs (default)"},
		&cli.StringFlag{Name: "before", Usage: "before the program of `NAME|id:N`"},
		&cli.StringFlag{Name: "after", Usage: "after the program of `NAME|id:N`"},
	}
}

func (e *Env) attachHook(hook, about string, flags ...cli.Flag) *cli.Command {
	return &cli.Command{
		Name:      hook,
		Usage:     about,
		ArgsUsage: "NAME",
		Flags: append(flags, progFlag(),
			&cli.BoolFlag{Name: "replace", Usage: "take the place of another program that bpfnet attached there"}),
		Action: e.attach,
	}
}

func (e *Env) attach(c *cli.Context) error {
	if err := args(c, "NAME"); err != nil {
		return err
	}
	if err := checkFollow(c); err != nil {
		return err
	}
	request, err := attachRequest(c)
	if err != nil {
		return err
	}
	target, err := selectTarget(c)
	if err != nil {
		return err
	}
	p, b, err := e.open(c)
	if err != nil {
		return err
	}
	defer b.Close()
	if c.Bool("follow") {
		return e.follow(c, p, b, request)
	}
	requests, err := e.finder(c, b)(request, target)
	if err != nil {
		return err
	}
	answer, err := b.Attach(c.Context, requests...)
	if err != nil {
		return err
	}
	already := fmt.Sprintf("%q is attached already", answer.Name)
	if len(answer.Attachments) == 0 {
		already = "nothing is left to attach to"
	}
	e.done(c, p, done{
		changed: answer.Changed,
		did:     fmt.Sprintf("attached %q", answer.Name),
		already: already,
		notes:   attachmentNotes(answer.Attachments),
	})
	e.notes(c, answer.Notes)
	return printAttached(p, answer, request.DryRun, attached)
}

func printAttached(p *output.Printer, answer datapath.Attached, dryRun bool, word string) error {
	if dryRun {
		word = "dry run"
	}
	return p.Object(newAttachedDoc(answer, dryRun), func() output.Table { return attachmentTable(answer.Attachments, word) })
}

// attachmentNotes collects what users should know, each thing once.
func attachmentNotes(items []datapath.Attachment) []string {
	var notes []string
	for _, a := range items {
		for _, refused := range a.RefusedWhy {
			notes = append(notes, "not taken: "+refused)
		}
		notes = append(notes, a.Notes...)
	}
	return unique(notes)
}

func attachRequest(c *cli.Context) (datapath.AttachRequest, error) {
	r := datapath.AttachRequest{
		Hook:    c.Command.Name,
		Name:    c.Args().First(),
		Program: c.String("prog"),
		Replace: c.Bool("replace"),
		DryRun:  c.Bool("dry-run"),
	}
	var err error
	if r.Direction, err = direction(c); err != nil {
		return r, err
	}
	if r.Hook == "tc" && r.Direction == "" {
		if !c.Bool(allPods) {
			return r, usage(c, "flag --direction is missing")
		}
		r.Direction = datapath.Both
	}
	if r.Mode, err = mode(c); err != nil {
		return r, err
	}
	r.Position, err = position(c)
	return r, err
}

func direction(c *cli.Context) (datapath.Direction, error) {
	text := c.String("direction")
	if text == "" {
		return "", nil
	}
	word, err := oneOf("direction", text, string(datapath.Ingress), string(datapath.Egress), string(datapath.Both))
	return datapath.Direction(word), err
}

func mode(c *cli.Context) (datapath.XDPMode, error) {
	if c.Command.Name != "xdp" {
		return "", nil
	}
	word, err := oneOf("mode", c.String("mode"), string(datapath.ModeAuto), string(datapath.ModeNative), string(datapath.ModeGeneric), string(datapath.ModeOffload))
	return datapath.XDPMode(word), err
}

func position(c *cli.Context) (datapath.Position, error) {
	var set []string
	for _, name := range []string{"first", "last", "before", "after"} {
		if c.IsSet(name) {
			set = append(set, dashed(name))
		}
	}
	if len(set) > 1 {
		return datapath.Position{}, usage(c, "%s exclude each other", strings.Join(set, " and "))
	}
	return datapath.Position{First: c.Bool("first"), Last: c.Bool("last"), Before: c.String("before"), After: c.String("after")}, nil
}
