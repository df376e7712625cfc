package commands

import (
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"bpfnet/internal/datapath"
	"bpfnet/internal/fault"
	"bpfnet/output"
)

type progDoc struct {
	Schema string `json:"schema"`
	datapath.Program
}

func newProgDoc(p datapath.Program) progDoc {
	p.MapIDs = list(p.MapIDs)
	return progDoc{"bpfnet.prog/v1", p}
}

type linkDoc struct {
	Schema string `json:"schema"`
	datapath.Attachment
	Changed *bool `json:"changed,omitempty"` // hides the Attachment's: nothing is being changed
}

func newLinkDoc(a datapath.Attachment) linkDoc {
	a.RefusedWhy, a.Notes = list(a.RefusedWhy), list(a.Notes)
	return linkDoc{Schema: "bpfnet.link/v1", Attachment: a}
}

func progCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:  "prog",
		Usage: "the loaded programs",
		Subcommands: []*cli.Command{
			{Name: "list", Usage: "all of them, or those of NAME", ArgsUsage: "[NAME]", Description: progDialect, Flags: pidsFlag(), Action: env.progList},
			{Name: "show", Usage: "one of them", ArgsUsage: "NAME[/FUNCTION]|id:N", Description: progDialect, Flags: pidsFlag(), Action: env.progShow},
		},
	}
}

func linkCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:  "link",
		Usage: "where programs are attached",
		Subcommands: []*cli.Command{
			{Name: "list", Usage: "all attachments, or those of NAME", ArgsUsage: "[NAME]", Description: linkDialect, Flags: pidsFlag(), Action: env.linkList},
			{Name: "show", Usage: "one of them", ArgsUsage: "NAME[/HOOK]|id:N", Description: linkDialect, Flags: pidsFlag(), Action: env.linkShow},
		},
	}
}

// instances reads what is loaded, or the instance of that name.
func (e *Env) instances(c *cli.Context, name string) (*output.Printer, []datapath.Instance, error) {
	p, b, err := e.open(c)
	if err != nil {
		return nil, nil, err
	}
	defer b.Close()
	instances, err := b.Instances(c.Context, name)
	return p, instances, err
}

func (e *Env) progList(c *cli.Context) error {
	if asBpftool(c) {
		return e.programsAsBpftool(c)
	}
	if err := noPids(c); err != nil {
		return err
	}
	ref, err := ownObject(c, "[NAME]")
	if err != nil {
		return err
	}
	p, instances, err := e.instances(c, ref.whole())
	if err != nil {
		return err
	}
	programs := allPrograms(instances)
	if ref.id != 0 {
		program, err := onlyProgram(ref, programs)
		if err != nil {
			return err
		}
		programs = []datapath.Program{program}
	}
	docs := make([]progDoc, len(programs))
	for i, program := range programs {
		docs[i] = newProgDoc(program)
	}
	return p.List(docs, func() output.Table { return programTable(programs) })
}

func allPrograms(instances []datapath.Instance) []datapath.Program {
	var programs []datapath.Program
	for _, in := range instances {
		programs = append(programs, in.Programs...)
	}
	return programs
}

func (e *Env) progShow(c *cli.Context) error {
	if asBpftool(c) {
		return e.programsAsBpftool(c)
	}
	if err := noPids(c); err != nil {
		return err
	}
	ref, err := ownObject(c, "NAME[/FUNCTION]|id:N")
	if err != nil {
		return err
	}
	p, instances, err := e.instances(c, ref.instance)
	if err != nil {
		return err
	}
	program, err := onlyProgram(ref, allPrograms(instances))
	if err != nil {
		return err
	}
	return p.Object(newProgDoc(program), func() output.Table { return programTable([]datapath.Program{program}) })
}

func onlyProgram(ref reference, programs []datapath.Program) (datapath.Program, error) {
	return only("program", "prog", ref, programs, func(p datapath.Program) (string, string, uint32) {
		return p.Set, p.Name, uint32(p.ID)
	})
}

func (e *Env) linkList(c *cli.Context) error {
	if asBpftool(c) {
		return e.linksAsBpftool(c)
	}
	if err := noPids(c); err != nil {
		return err
	}
	ref, err := ownObject(c, "[NAME]")
	if err != nil {
		return err
	}
	p, instances, err := e.instances(c, ref.whole())
	if err != nil {
		return err
	}
	attachments := allAttachments(instances)
	if ref.id != 0 {
		attachment, err := onlyAttachment(ref, attachments)
		if err != nil {
			return err
		}
		attachments = []datapath.Attachment{attachment}
	}
	docs := make([]linkDoc, len(attachments))
	for i, a := range attachments {
		docs[i] = newLinkDoc(a)
	}
	return p.List(docs, func() output.Table { return linkTable(attachments) })
}

func allAttachments(instances []datapath.Instance) []datapath.Attachment {
	var attachments []datapath.Attachment
	for _, in := range instances {
		attachments = append(attachments, in.Attachments...)
	}
	return attachments
}

func (e *Env) linkShow(c *cli.Context) error {
	if asBpftool(c) {
		return e.linksAsBpftool(c)
	}
	if err := noPids(c); err != nil {
		return err
	}
	ref, err := ownObject(c, "NAME[/HOOK]|id:N")
	if err != nil {
		return err
	}
	p, instances, err := e.instances(c, ref.instance)
	if err != nil {
		return err
	}
	a, err := onlyAttachment(ref, allAttachments(instances))
	if err != nil {
		return err
	}
	return p.Object(newLinkDoc(a), func() output.Table { return attachmentTable([]datapath.Attachment{a}, attached) })
}

func onlyAttachment(ref reference, attachments []datapath.Attachment) (datapath.Attachment, error) {
	return only("attachment", "link", ref, attachments, func(a datapath.Attachment) (string, string, uint32) {
		return a.Name, a.Hook, pointed(a.LinkID)
	})
}

// reference is what show commands take: NAME, NAME/PART or id:N.
type reference struct {
	text, instance, part string
	id                   uint32 // 0: not an id
}

func parseRef(text string) reference {
	if digits, ok := strings.CutPrefix(text, "id:"); ok {
		if id, err := strconv.ParseUint(digits, 10, 32); err == nil && id > 0 {
			return reference{text: text, id: uint32(id)}
		}
	}
	instance, part, _ := strings.Cut(text, "/")
	return reference{text: text, instance: instance, part: part}
}

// whole is the instance for a command that lists all of one; "" for all of them.
func (r reference) whole() string {
	if r.id != 0 {
		return ""
	}
	return r.text
}

// only returns the one item that a reference means. group is the command group
// for that kind; name tells an item's instance, part and id.
func only[T any](kind, group string, ref reference, items []T, name func(T) (instance, part string, id uint32)) (T, error) {
	var found []T
	hint := "id:N of one of these:"
	for _, item := range items {
		instance, part, id := name(item)
		if ref.id != 0 && ref.id != id || ref.id == 0 && (ref.instance != instance || ref.part != "" && ref.part != part) {
			continue
		}
		found = append(found, item)
		hint += " " + instance + "/" + part + " (id:" + strconv.FormatUint(uint64(id), 10) + ")"
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		var none T
		err := fault.New(fault.ErrNotFound, "show %s %q: no such %s", kind, ref.text, kind)
		if ref.id != 0 {
			err.Hint("bpfnet -j %s show id %d   shows it if it isn't bpfnet's", group, ref.id)
		}
		return none, err.Hint("bpfnet status   shows what is loaded and attached")
	}
	return found[0], fault.New(fault.ErrUsage, "show %s %q: %d %ss match", kind, ref.text, len(found), kind).Hint("%s", hint)
}

func pointed[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}

func programTable(programs []datapath.Program) output.Table {
	t := output.Table{Header: []string{"id", "name", "program", "type", "section", "tag", "jited"}}
	for _, p := range programs {
		t.Rows = append(t.Rows, []string{ident(uint32(p.ID)), p.Set, p.Name, p.Type, p.Section, p.Tag, bytesOf(p.BytesJited)})
	}
	return t
}

// attachmentTable shows attachments that are attached, or what word says.
func attachmentTable(attachments []datapath.Attachment, word string) output.Table {
	t := output.Table{Header: []string{"name", "program", "hook", "target", "mechanism", "link", "prog", "state"}}
	for _, a := range attachments {
		t.Rows = append(t.Rows, []string{a.Name, a.Program, a.Hook, target(a), how(a), ident(pointed(a.LinkID)), ident(uint32(a.ProgID)), state(a, word)})
	}
	return t
}

// linkTable tells devices of one name apart by their network namespace.
func linkTable(attachments []datapath.Attachment) output.Table {
	t := attachmentTable(attachments, attached)
	t.Header = append(t.Header, "netns")
	for i, a := range attachments {
		netns := ""
		if a.NetNS != nil {
			netns = strconv.FormatUint(*a.NetNS, 10)
		}
		t.Rows[i] = append(t.Rows[i], netns)
	}
	return t
}

func namesTable(names []string) output.Table {
	t := output.Table{Header: []string{"name"}}
	for _, name := range names {
		t.Rows = append(t.Rows, []string{name})
	}
	return t
}

// target names what an attachment hangs on.
func target(a datapath.Attachment) string {
	switch {
	case a.Cgroup != nil:
		return *a.Cgroup
	case a.Target != nil:
		return *a.Target
	case a.DevName != nil:
		return *a.DevName
	case a.IfIndex != nil:
		return "ifindex " + ident(*a.IfIndex)
	}
	return ""
}

func how(a datapath.Attachment) string {
	if a.Mode != nil {
		return a.Mechanism + " (" + *a.Mode + ")"
	}
	return a.Mechanism
}

// attached is the state of an attachment that works.
const attached = "attached"

// state is "defunct" when the target of an attachment is gone, else word.
func state(a datapath.Attachment, word string) string {
	if a.Defunct {
		return "defunct"
	}
	return word
}

// ident writes an id; there is none with the number 0.
func ident(n uint32) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatUint(uint64(n), 10)
}

func bytesOf(n *uint32) string {
	if n == nil {
		return ""
	}
	return output.Bytes(uint64(*n))
}
