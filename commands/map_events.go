package commands

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"bpfnet/internal/fault"
	"bpfnet/internal/maps"
	"bpfnet/output"
)

func mapEventsCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:      "events",
		Aliases:   []string{"event_pipe"},
		Usage:     "the records that programs send through a ring buffer or perf event array, as they come",
		ArgsUsage: "MAP",
		Description: "Records are taken out of the map, so one process reads it at a time: a map that another one has open is refused. " +
			"Their type is what the map's definition in C says, in the BTF of the programs that use it or in the object that it was loaded from; " +
			"else the structure that is called like the map (events: struct event); else they are bytes.",
		Flags: append(eventFlags("records"),
			&cli.StringFlag{Name: "type", Usage: "`TYPE` of the records in C, as in 'struct event'"},
			&cli.StringFlag{Name: "btf", Usage: "take the type from the object `FILE`"},
		),
		Action: func(c *cli.Context) error {
			request, err := env.eventsRequest(c)
			if err != nil {
				return err
			}
			p, b, err := env.open(c)
			if err != nil {
				return err
			}
			defer b.Close()
			return env.mapEvents(c, p, b.Maps(), request)
		},
	}
}

func (e *Env) eventsRequest(c *cli.Context) (maps.EventsRequest, error) {
	request := maps.EventsRequest{Type: strings.TrimSpace(c.String("type")), Steal: c.Bool("steal")}
	if at := slices.IndexFunc(c.Args().Slice(), func(word string) bool { return word == "cpu" || word == "index" }); at > 0 {
		return request, usage(c, "%q: it reads every CPU; there is no cpu and no index to choose", c.Args().Get(at))
	}
	w, err := mapArgs(c, "MAP")
	if err != nil {
		return request, err
	}
	if c.IsSet("type") && request.Type == "" {
		return request, usage(c, "--type is empty")
	}
	if err := checkEventFlags(c); err != nil {
		return request, err
	}
	if c.Bool("dry-run") {
		return request, usage(c, "--dry-run: reading records takes them out of the map")
	}
	request.Map = w.ref
	if c.IsSet("btf") {
		request.From = c.String("btf")
		request.BTF, err = e.typesFile(request.From)
	}
	return request, err
}

// eventFlags are the flags of streams of what is taken out of a map; check them
// with checkEventFlags.
func eventFlags(what string) []cli.Flag {
	return []cli.Flag{
		&cli.Uint64Flag{Name: "count", DefaultText: noLimit, Usage: "end after `N` " + what},
		&cli.DurationFlag{Name: "for", DefaultText: noLimit, Usage: "end after `TIME`"},
		&cli.BoolFlag{Name: "steal", Usage: "read them although another process has the map open"},
	}
}

func checkEventFlags(c *cli.Context) error {
	switch {
	case c.IsSet("count") && c.Uint64("count") == 0:
		return usage(c, "--count 0: the least is 1")
	case c.IsSet("for") && c.Duration("for") <= 0:
		return usage(c, "--for %s: it must be longer than 0", c.Duration("for"))
	}
	return nil
}

// typesFile reads an object that has types.
func (e *Env) typesFile(path string) ([]byte, error) {
	object, err := e.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fault.New(fault.ErrNotFound, "read types from %q: no such file", path)
	case err != nil:
		return nil, fmt.Errorf("read types from %q: %w", path, err)
	}
	return object, nil
}

// mapEvents shows the records of a map until there were enough, the time is
// over, the command is interrupted or nobody reads its output any more.
func (e *Env) mapEvents(c *cli.Context, p *output.Printer, api maps.API, request maps.EventsRequest) error {
	stream, err := api.Events(c.Context, request)
	if err != nil {
		return err
	}
	defer stream.Close()
	source := stream.Source()
	e.notes(c, source.Notes)
	ctx, stop := e.whileRead(c.Context, c.Duration("for"))
	defer stop()
	read, err := stream.Read(ctx, c.Uint64("count"), eventPrinter(p, source))
	if err != nil {
		return err
	}
	e.notes(c, append(read.Notes, lostNote(source, read)...))
	return nil
}

// readerCheck is the time between two looks whether somebody reads the output.
const readerCheck = 250 * time.Millisecond

// whileRead returns a context that ends when nobody reads the output any more,
// which a stream that is silent wouldn't notice, or after a limit, unless it is 0.
func (e *Env) whileRead(parent context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(parent)
	if limit > 0 {
		ctx, cancel = context.WithTimeout(parent, limit)
	}
	go func() {
		ticker := time.NewTicker(readerCheck)
		defer ticker.Stop()
		for !e.ReaderGone() {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
		}
		cancel()
	}()
	return ctx, cancel
}

// eventPrinter returns what prints a batch of records in one write.
func eventPrinter(p *output.Printer, source maps.EventSource) func([]maps.Event) error {
	stream := p.Stream()
	name, _ := json.Marshal(source.Map) // text has no errors
	origin := fmt.Appendf(nil, `","map":%s,"map_id":%d,"cpu":`, name, source.MapID)
	var document []byte
	return func(events []maps.Event) error {
		for _, event := range events {
			document = appendEvent(document[:0], origin, source.PerCPU, event)
			if err := stream.Add(document, func() string { return eventLine(source, event) }); err != nil {
				return err
			}
		}
		return stream.Flush()
	}
}

// appendEvent adds the document of a record.
func appendEvent(dst, origin []byte, perCPU bool, e maps.Event) []byte {
	dst = append(dst, `{"schema":"bpfnet.map_event/v1","time":"`...)
	dst = e.Time.UTC().AppendFormat(dst, time.RFC3339Nano)
	dst = append(dst, origin...)
	if perCPU {
		dst = strconv.AppendInt(dst, int64(e.CPU), 10)
		dst = append(dst, `,"lost":`...)
		dst = strconv.AppendUint(dst, e.Lost, 10)
	} else {
		dst = append(dst, `null,"lost":null`...)
	}
	dst = append(dst, `,"bytes":`...)
	dst = strconv.AppendInt(dst, int64(e.Bytes), 10)
	dst = append(dst, `,"event":`...)
	dst = append(dst, e.Data...)
	dst = append(dst, `,"trailing":`...)
	if e.Trailing == nil {
		return append(dst, "null}"...)
	}
	return append(append(dst, e.Trailing...), '}')
}

// eventLine is a record for people.
func eventLine(source maps.EventSource, e maps.Event) string {
	parts := []string{e.Time.Format("15:04:05.000000")}
	if source.PerCPU {
		parts = append(parts, fmt.Sprintf("cpu %d", e.CPU))
	}
	parts = append(parts, text(e.Data))
	if e.Trailing != nil {
		parts = append(parts, "+ "+text(e.Trailing))
	}
	if e.Lost > 0 {
		parts = append(parts, fmt.Sprintf("(%d lost before)", e.Lost))
	}
	return strings.Join(parts, "  ")
}

// lostNote says how many records found no space in the buffers.
func lostNote(source maps.EventSource, read maps.EventsRead) []string {
	if len(read.Lost) == 0 {
		return nil
	}
	var total uint64
	var parts []string
	for _, lost := range read.Lost {
		total += lost.Count
		parts = append(parts, fmt.Sprintf("%d of cpu %d", lost.Count, lost.CPU))
	}
	return []string{fmt.Sprintf("records of map %s that were lost, because they weren't read fast enough: %d (%s)", source.Map, total, strings.Join(parts, ", "))}
}
