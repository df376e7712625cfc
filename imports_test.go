package main

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// The rules that hold the architecture (docs/ARCHITECTURE.md): imports point one
// way, and what touches the kernel, the terminal or a file format has one place.

// ranks are the module's packages, by folder, from the top down. A package
// imports packages of a lower rank; those of one folder may use each other.
var ranks = []struct {
	folder string
	rank   int
}{
	{"commands", 4},
	{"completions", 3},
	{"output", 3},
	{"internal/fault", 0},
	{"internal", 2},
	{"pinned", 1},
	{"bpf", 1},
}

// reserved are the packages that only some folders may import.
var reserved = []struct {
	imported string
	by       []string
	tests    bool // tests may, wherever they are
}{
	{"github.com/urfave/cli", []string{"commands"}, false},
	{"github.com/olekukonko/tablewriter", []string{"output"}, false},
	{"gopkg.in/yaml.v3", []string{"output", "internal/feed", "internal/alertconfig"}, true}, // the writer, and the readers of lists and of rules
	{"github.com/miekg/dns", []string{"internal/dns"}, true},
	{"google.golang.org/protobuf", []string{"internal/engine", "internal/sink"}, false},
	{"google.golang.org/genproto", []string{"internal/sink"}, false},
	{"go.opentelemetry.io", []string{"internal/sink"}, false},
	{"google.golang.org/grpc", []string{"internal/engine"}, true},
	{"k8s.io/cri-api", []string{"internal/engine"}, true},
	{"github.com/containerd", []string{"internal/engine"}, true},
	{"github.com/axiomhq/hyperloglog", []string{"internal/detect"}, true},
	{"net/http", []string{"internal/engine", "internal/metrics", "internal/sink"}, true},
	{"github.com/prometheus", []string{"internal/metrics", "internal/match"}, true},
	{"github.com/cilium/ebpf/link", []string{"internal/datapath"}, true},
	{"github.com/cilium/ebpf", []string{"bpf", "pinned", "internal", "bench"}, true},
}

// tests are packages that only tests import, and each other.
var tests = []string{"internal/testkit", "internal/workload"}

const module = "bpfnet"

func TestImports(t *testing.T) {
	err := filepath.WalkDir(".", func(file string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(file, ".go") {
			return err
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, spec := range parsed.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			if why := refuse(filepath.ToSlash(file), imported); why != "" {
				t.Errorf("%s imports %s: %s", file, imported, why)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// refuse says why a file may not import a package, "" if it may.
func refuse(file, imported string) string {
	folder, test := path.Dir(file), strings.HasSuffix(file, "_test.go")
	if inner, ok := strings.CutPrefix(imported, module+"/"); ok {
		if !test && slices.Contains(tests, inner) && !slices.Contains(tests, folder) {
			return "only for tests"
		}
		if from, to := rank(folder), rank(inner); !test && (from < to || from == to && top(folder) != top(inner)) {
			return "imports point from main to commands, to internal and output, to pinned and bpf, to internal/fault"
		}
		return ""
	}
	for _, r := range reserved {
		if !within(imported, r.imported) || test && r.tests {
			continue
		}
		for _, by := range r.by {
			if within(folder, by) {
				return ""
			}
		}
		return "only for " + strings.Join(r.by, ", ")
	}
	return ""
}

func rank(folder string) int {
	for _, r := range ranks {
		if within(folder, r.folder) {
			return r.rank
		}
	}
	return 5 // main, tests and benchmarks: nothing imports them
}

func top(folder string) string {
	first, _, _ := strings.Cut(folder, "/")
	return first
}

func within(name, folder string) bool {
	return name == folder || strings.HasPrefix(name, folder+"/")
}

func TestRefuse(t *testing.T) {
	for _, c := range []struct {
		file, imported string
		refused        bool
	}{
		{"main.go", "bpfnet/commands", false},
		{"commands/app.go", "bpfnet/output", false},
		{"output/json.go", "bpfnet/commands", true},
		{"output/json.go", "bpfnet/internal/datapath", false},
		{"internal/datapath/load.go", "bpfnet/output", true},
		{"internal/datapath/load.go", "bpfnet/internal/probe", false},
		{"internal/fault/fault.go", "bpfnet/pinned", true},
		{"pinned/lock.go", "bpfnet/internal/fault", false},
		{"pinned/lock.go", "bpfnet/bpf", true},
		{"output/table.go", "github.com/olekukonko/tablewriter/tw", false},
		{"commands/app.go", "github.com/olekukonko/tablewriter", true},
		{"internal/maps/store.go", "github.com/urfave/cli/v2", true},
		{"commands/blocklist.go", "github.com/miekg/dns", true},
		{"internal/maps/store.go", "github.com/cilium/ebpf/link", true},
		{"internal/maps/store.go", "github.com/cilium/ebpf/btf", false},
		{"commands/map.go", "github.com/cilium/ebpf", true},
		{"internal/feed/yaml.go", "gopkg.in/yaml.v3", false},
		{"internal/maps/import.go", "gopkg.in/yaml.v3", true},
		{"internal/engine/cri.go", "k8s.io/cri-api/pkg/apis/runtime/v1", false},
		{"internal/endpoint/names.go", "k8s.io/cri-api/pkg/apis/runtime/v1", true},
		{"internal/sink/otlp.go", "go.opentelemetry.io/proto/slim/otlp/logs/v1", false},
		{"internal/metrics/server.go", "go.opentelemetry.io/proto/slim/otlp/logs/v1", true},
		{"test/containerd_test.go", "k8s.io/cri-api/pkg/apis/runtime/v1", false},
		{"internal/metrics/server.go", "github.com/prometheus/exporter-toolkit/web", false},
		{"commands/export.go", "github.com/prometheus/client_golang/prometheus", true},
		{"internal/flow/sampler.go", "bpfnet/internal/workload", true},
		{"internal/flow/sampler_test.go", "bpfnet/internal/workload", false},
		{"internal/workload/cases.go", "bpfnet/internal/testkit", false},
		{"internal/alert/labels.go", "github.com/prometheus/alertmanager/pkg/labels", true},
	} {
		if got := refuse(c.file, c.imported) != ""; got != c.refused {
			t.Errorf("%s imports %s: refused is %v, want %v", c.file, c.imported, got, c.refused)
		}
	}
}
