package commands

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"bpfnet/internal/bypass"
	"bpfnet/internal/fault"
	"bpfnet/internal/probe"
	"bpfnet/output"
)

type doctorDoc struct {
	Schema string `json:"schema"`
	OK     bool   `json:"ok"` // the basic features are there, and the self test, if run, passed
	probe.Report
	HostSide bypass.Report `json:"host_side"`
	SelfTest []probe.Step  `json:"selftest"` // null: not run
}

func doctorCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:  "doctor",
		Usage: "what this machine can do and which mechanism would be used",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "selftest", Usage: "send real packets through each mechanism, in namespaces made for it"},
		},
		Action: env.doctor,
	}
}

func (e *Env) doctor(c *cli.Context) error {
	if err := args(c); err != nil {
		return err
	}
	p, b, err := e.open(c)
	if err != nil {
		return err
	}
	defer b.Close()
	doc := doctorDoc{Schema: "bpfnet.doctor/v1", Report: b.Probe(c.Context), HostSide: b.Bypass(c.Context)}
	if c.Bool("selftest") {
		doc.SelfTest = b.SelfTest(c.Context)
	}
	if err := c.Context.Err(); err != nil {
		return err
	}
	verdict := diagnose(doc)
	doc.OK = verdict == nil
	if err := p.Object(doc, func() output.Table { return doctorTable(doc) }); err != nil {
		return err
	}
	return verdict
}

// basics are the features without which nothing works, with the next step.
var basics = []struct{ feature, hint string }{
	{"bpffs", "mount -t bpf bpf /sys/fs/bpf   (or add --mount)"},
	{"tc", "the kernel needs CONFIG_BPF_SYSCALL and CONFIG_NET_CLS_ACT"},
	{"xdp", "the kernel needs CONFIG_BPF_SYSCALL"},
}

// diagnose returns the first thing that keeps bpfnet from working here.
func diagnose(doc doctorDoc) error {
	for _, basic := range basics {
		result, ok := doc.Result(basic.feature)
		if !ok || result.Status == probe.Available {
			continue
		}
		kind, hint := fault.ErrUnsupported, basic.hint
		if result.Status == probe.NoPermission {
			kind, hint = fault.ErrPermission, "run as root, or give the process CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON"
		}
		return fault.New(kind, "check %s: %s", basic.feature, reason(result)).Hint("%s", hint)
	}
	return diagnoseSelfTest(doc.SelfTest)
}

func diagnoseSelfTest(steps []probe.Step) error {
	for _, step := range steps {
		if !step.OK && !step.Skipped {
			return fmt.Errorf("test %s by %s: %s", step.Name, step.Mechanism, optional(step.Detail))
		}
	}
	return nil
}

// doctorTable shows the document from the general to the particular.
func doctorTable(doc doctorDoc) output.Table {
	table := output.Table{Header: []string{"group", "what", "answer", "detail"}}
	table.Rows = append(append(table.Rows, machineRows(doc.Environment)...), hostSideRow(doc.HostSide))
	for _, choice := range doc.Choices {
		table.Rows = append(table.Rows, choiceRow(choice))
	}
	for _, feature := range doc.Features {
		table.Rows = append(table.Rows, featureRow(feature))
	}
	for _, step := range doc.SelfTest {
		table.Rows = append(table.Rows, stepRow(step))
	}
	return table
}

func machineRows(e probe.Environment) [][]string {
	rows := [][]string{
		{"kernel", e.Kernel, e.Machine},
		{"capabilities", fmt.Sprintf("%d of %d", len(e.Capabilities), len(probe.AllCapabilities())), words(e.Capabilities)},
		{"bpffs", optional(e.BPFFS), ""},
		{"cgroup2", optional(e.Cgroup2), ""},
		{"lockdown", optional(e.Lockdown), ""},
		{"security modules", fmt.Sprint(len(e.LSMs)), words(e.LSMs)},
		{"jit", level(e.JIT, "off", "on", "on, with debugging"), ""},
		{"unprivileged bpf", level(e.UnprivilegedBPFDisabled, "allowed", "refused", "refused"), ""},
		{"perf_event_paranoid", number(e.PerfEventParanoid), ""},
		{"locked memory", memlockCell(e.MemlockBytes), ""},
	}
	if e.UserNamespace {
		rows = append(rows, []string{"user namespace", "yes", "its capabilities don't count for BPF"})
	}
	if e.Seccomp {
		rows = append(rows, []string{"seccomp", "yes", "a system call filter is in force"})
	}
	for i := range rows {
		rows[i] = append([]string{"machine"}, rows[i]...)
	}
	return rows
}

// insteadOfTC is how an instance sees what passes by the host side.
func insteadOfTC(instance string) string {
	return "bpfnet attach cgroup " + instance + " --all-pods"
}

func hostSideRow(r bypass.Report) []string {
	answer, detail := "unknown", optional(r.Detail)
	switch {
	case len(r.Programs) > 0:
		answer, detail = "yes", bypassText(r.Programs)+"; "+insteadOfTC(podTraffic)+" counts it"
	case r.Bypassed != nil:
		answer = "no"
	}
	return []string{"machine", "host side bypassed", answer, detail}
}

// bypassText names the first of some programs and says how many there are.
func bypassText(programs []bypass.Program) string {
	text := programs[0].String()
	if others := len(programs) - 1; others > 0 {
		text += fmt.Sprintf(", and %d more do the like", others)
	}
	return text
}

func choiceRow(choice probe.Choice) []string {
	mechanism := "nothing"
	if choice.Mechanism != nil {
		mechanism = *choice.Mechanism
	}
	refused := make([]string, len(choice.Refused))
	for i, r := range choice.Refused {
		refused[i] = fmt.Sprintf("not %s: %s", r.Mechanism, phrase(r.Status))
	}
	return []string{"choice", choice.Purpose, mechanism, strings.Join(refused, "; ")}
}

func featureRow(r probe.Result) []string {
	detail := ""
	if r.Status != probe.Available {
		detail = reason(r)
	}
	return []string{r.Group, r.Feature, phrase(r.Status), detail}
}

func stepRow(step probe.Step) []string {
	answer := "failed"
	switch {
	case step.OK:
		answer = fmt.Sprintf("ok, %.0f ms", step.DurationMS)
	case step.Skipped:
		answer = "skipped"
	}
	return []string{"self test", step.Name + ", " + step.Mechanism, answer, optional(step.Detail)}
}

// reason says why a feature isn't available, and to whom that matters.
func reason(r probe.Result) string {
	parts := []string{optional(r.Detail)}
	if r.Status == probe.Unsupported && r.Since != "" {
		parts = append(parts, "kernels have it since "+r.Since)
	}
	if len(r.NeededBy) > 0 {
		parts = append(parts, "used by "+strings.Join(r.NeededBy, ", "))
	}
	return strings.Join(parts, "; ")
}

func phrase(s probe.Status) string { return strings.ReplaceAll(string(s), "_", " ") }

func optional(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

func number(n *int) string {
	if n == nil {
		return ""
	}
	return fmt.Sprint(*n)
}

// level names a small number.
func level(n *int, names ...string) string {
	if n == nil || *n < 0 || *n >= len(names) {
		return number(n)
	}
	return names[*n]
}

func words[T ~string](list []T) string {
	text := make([]string, len(list))
	for i, word := range list {
		text[i] = string(word)
	}
	return strings.Join(text, " ")
}

func memlockCell(limit *uint64) string {
	if limit == nil {
		return "unlimited"
	}
	return output.Bytes(*limit)
}
