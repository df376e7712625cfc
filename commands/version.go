package commands

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/urfave/cli/v2"

	"bpfnet/output"
)

type versionDoc struct {
	Schema   string  `json:"schema"`
	Version  string  `json:"version"`
	Revision *string `json:"revision"` // null: not built from a repository
	Modified *bool   `json:"modified"`
	Go       string  `json:"go"`
	Platform string  `json:"platform"`
}

func versionCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:  "version",
		Usage: "print the version",
		Action: func(c *cli.Context) error {
			if err := args(c); err != nil {
				return err
			}
			return printVersion(c, env)
		},
	}
}

func printVersion(c *cli.Context, env *Env) error {
	p, err := env.printer(c)
	if err != nil {
		return err
	}
	doc := readVersion()
	if p.Format() == output.FormatTable {
		_, err := fmt.Fprintf(env.Stdout, "bpfnet %s, %s, %s\n", doc.Version, doc.Go, doc.Platform)
		return err
	}
	return p.Object(doc, nil)
}

// readVersion reads what the Go linker noted in the executable.
func readVersion() versionDoc {
	doc := versionDoc{
		Schema:   "bpfnet.version/v1",
		Version:  "unknown",
		Go:       runtime.Version(),
		Platform: runtime.GOOS + "/" + runtime.GOARCH,
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return doc
	}
	doc.Version = info.Main.Version
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			doc.Revision = &s.Value
		case "vcs.modified":
			modified := s.Value == "true"
			doc.Modified = &modified
		}
	}
	return doc
}
