package commands

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"bpfnet/internal/blocklist"
	"bpfnet/internal/fault"
)

// Events has two hits. A list of the name "taken" stands for another reader, one
// of the name "lossy" for a buffer that was and is full.
func (f *fakeBlocklist) Events(_ context.Context, r blocklist.EventsRequest) (blocklist.EventSource, error) {
	has := func(name string) bool { _, err := f.find(name); return err == nil }
	source := &fakeHits{events: fakeEventsOf()}
	if has("taken") && !r.Steal {
		return nil, fault.New(fault.ErrConflict, "read events of map block_events: process 812 (bpfnet) has it open, and only one can read it").
			Hint("--steal reads it all the same")
	}
	if has("taken") {
		source.notes = []string{"map block_events is open in process 812 (bpfnet)"}
	}
	if has("lossy") {
		source.loss = blocklist.Loss{Events: 3, Before: 2, Suppressed: 1}
	}
	return source, nil
}

func fakeEventsOf() []blocklist.Event {
	at := time.Date(2026, 1, 2, 3, 4, 5, 600_000_000, time.UTC)
	return []blocklist.Event{
		{
			Time: at, Source: netip.MustParseAddrPort("198.51.100.7:40001"), Destination: netip.MustParseAddrPort("10.0.0.1:443"),
			Protocol: 6, Length: 74, IfIndex: 4, Hook: "tc", Direction: "ingress", Dropped: true, Matched: blocklist.Source, Suppressed: 2,
			Entry: blocklist.Entry{
				List: "default", Prefix: netip.MustParsePrefix("198.51.100.7/32"), Action: blocklist.AlertAndDrop,
				Reason: "abuse \x1b[31m", Expires: at.Add(time.Hour).Truncate(time.Second),
			},
		},
		{
			Time: at.Add(time.Second), Source: netip.MustParseAddrPort("[fd00::1]:0"), Destination: netip.MustParseAddrPort("[2001:db8:bad::5]:0"),
			Protocol: 58, Length: 104, IfIndex: 2, Hook: "cgroup", Direction: "egress", CgroupID: 9007199254740993, Matched: blocklist.Destination,
			Entry: blocklist.Entry{Prefix: netip.MustParsePrefix("2001:db8:bad::/48")},
		},
	}
}

type fakeHits struct {
	events []blocklist.Event
	notes  []string
	loss   blocklist.Loss
	closed bool
}

func (f *fakeHits) Notes() []string { return f.notes }

// Read emits a hit at a time. When there are no more it waits for the end, unless
// it is to read what is there.
func (f *fakeHits) Read(ctx context.Context, how blocklist.EventsReading) error {
	if f.closed {
		return errors.New("read after close")
	}
	for hit := range slices.Chunk(f.events, 1) {
		if how.Most() == 0 {
			return nil
		}
		if err := how.Emit(hit); err != nil {
			return err
		}
	}
	if how.Most() > 0 && !how.Pending {
		<-ctx.Done()
	}
	return nil
}

func (f *fakeHits) Loss() (blocklist.Loss, error) { return f.loss, nil }

func (f *fakeHits) Waiting() int { return 0 }

func (f *fakeHits) Close() error {
	f.closed = true
	return nil
}
