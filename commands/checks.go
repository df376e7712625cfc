package commands

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"bpfnet/internal/alertconfig"
	"bpfnet/internal/fault"
	"bpfnet/internal/nearest"
)

// usage returns a usage error that points to the command's help.
func usage(c *cli.Context, format string, args ...any) *fault.Error {
	return fault.New(fault.ErrUsage, format, args...).Hint("see: %s --help", commandName(c))
}

// args checks the arguments of a command against their names: "MAP" has to be
// there, "[NAME]" may be, "RULE..." is one or more. None may be empty: a script's
// variable that isn't set must not mean everything.
func args(c *cli.Context, names ...string) error {
	least, most := 0, len(names)
	for _, name := range names {
		if !strings.HasPrefix(name, "[") {
			least++
		}
		if strings.HasSuffix(strings.TrimSuffix(name, "]"), "...") {
			most = c.NArg()
		}
	}
	line := strings.Join(append([]string{"usage:", commandName(c)}, names...), " ")
	if n := c.NArg(); n < least {
		return fault.New(fault.ErrUsage, "argument %s is missing", strings.TrimSuffix(names[n], "...")).Hint("%s", line)
	} else if n > most {
		return fault.New(fault.ErrUsage, "unexpected argument %q", c.Args().Get(most)).Hint("%s", line)
	}
	for i, arg := range c.Args().Slice() {
		if arg == "" {
			name := strings.Trim(names[min(i, len(names)-1)], "[.]")
			return fault.New(fault.ErrUsage, "argument %s is empty", name).Hint("%s", line)
		}
	}
	return nil
}

// ticks says when a stream takes its samples.
type ticks struct {
	interval time.Duration
	count    int // 0: until interrupted
}

// noLimit is what help shows as the default of a flag that limits something.
const noLimit = "no limit"

// tickFlags are the flags of streams; read them with readTicks.
func tickFlags(interval time.Duration) []cli.Flag {
	return []cli.Flag{
		&cli.DurationFlag{Name: "interval", Value: interval, Usage: "`TIME` between two samples"},
		&cli.IntFlag{Name: "count", DefaultText: noLimit, Usage: "end after `N` samples"},
		&cli.BoolFlag{Name: "once", Usage: "one sample, the same as --count 1"},
	}
}

func checkInterval(c *cli.Context, interval time.Duration) error {
	if interval < alertconfig.LeastInterval {
		return usage(c, "--interval %s is too short: the least is %s", interval, alertconfig.LeastInterval)
	}
	return nil
}

// readTicks reads tickFlags.
func readTicks(c *cli.Context) (ticks, error) {
	t := ticks{interval: c.Duration("interval"), count: c.Int("count")}
	if err := checkInterval(c, t.interval); err != nil {
		return t, err
	}
	if t.count < 0 || c.IsSet("count") && t.count == 0 {
		return t, usage(c, "--count %d: the least is 1", t.count)
	}
	if c.Bool("once") {
		if t.count > 1 {
			return t, usage(c, "--once and --count %d exclude each other", t.count)
		}
		t.count = 1
	}
	return t, nil
}

// run calls fn after each interval, count times or until ctx ends, which is a
// clean end.
func (t ticks) run(ctx context.Context, fn func() error) error {
	ticker := time.NewTicker(t.interval)
	defer ticker.Stop()
	for n := 0; t.count == 0 || n < t.count; n++ {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		if err := fn(); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
	}
	return nil
}

// oneOf checks the value of a flag that takes one of a few words.
func oneOf(flag, value string, words ...string) (string, error) {
	if slices.Contains(words, value) {
		return value, nil
	}
	return "", fault.New(fault.ErrUsage, "%s %q: no such %s", dashed(flag), value, flag).Hint("%s", nearest.Hint(value, words))
}

// pairs reads a repeated flag of the form KEY=VALUE.
func pairs(c *cli.Context, flag string) (map[string]string, error) {
	values := map[string]string{}
	for _, text := range c.StringSlice(flag) {
		key, value, ok := strings.Cut(text, "=")
		if !ok || key == "" {
			return nil, usage(c, "--%s %q: not of the form NAME=VALUE", flag, text)
		}
		if _, twice := values[key]; twice {
			return nil, usage(c, "--%s: %q is given twice", flag, key)
		}
		values[key] = value
	}
	return values, nil
}
