package commands

import (
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"bpfnet/internal/holders"
	"bpfnet/internal/maps"
)

// userFlags ask for what costs more than the rest; addUsers reads them.
func userFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "fill", Usage: "count the entries in use, which reads them all"},
		&cli.BoolFlag{Name: "pids", Usage: "find the processes that have it open"},
	}
}

// addUsers adds to maps what userFlags ask for.
func (e *Env) addUsers(c *cli.Context, api maps.API, all []maps.Map) error {
	if c.Bool("fill") {
		notes, err := api.CountEntries(c.Context, all)
		if err != nil {
			return err
		}
		e.notes(c, notes)
	}
	if c.Bool("pids") {
		notes, err := api.FindProcesses(c.Context, all)
		if err != nil {
			return err
		}
		e.notes(c, notes)
	}
	return nil
}

func fillCell(fill *uint64) string {
	if fill == nil {
		return ""
	}
	return strconv.FormatUint(*fill, 10)
}

func processesCell(processes []holders.Process) string {
	words := make([]string, len(processes))
	for i, p := range processes {
		words[i] = p.String()
	}
	return strings.Join(words, ", ")
}

func programsCell(ids []uint32) string {
	words := make([]string, len(ids))
	for i, id := range ids {
		words[i] = decimal(id)
	}
	return strings.Join(words, " ")
}
