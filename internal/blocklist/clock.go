package blocklist

import (
	"fmt"
	"math"
	"time"

	"golang.org/x/sys/unix"
)

// clock is one moment in the time of people and in that of the programs.
type clock struct {
	now  time.Time
	boot uint32        // seconds of CLOCK_BOOTTIME
	up   time.Duration // the same, exactly
}

func readClock() (clock, error) {
	var boot unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot); err != nil {
		return clock{}, fmt.Errorf("read the clock: %w", err)
	}
	return clock{now: time.Now(), boot: uint32(boot.Sec), up: time.Duration(boot.Nano())}, nil
}

// isOver says whether an entry has expired.
func (c clock) isOver(e entry) bool { return e.expires != 0 && e.expires <= c.boot }

// latest is the last end that the maps can have; that of an import may be later.
const latest = math.MaxUint32 * time.Second

// ends is the time of an entry's end as the maps have it.
func (c clock) ends(at time.Time) uint32 {
	if at.IsZero() {
		return 0
	}
	left := at.Sub(c.now)
	if left <= 0 {
		return max(c.boot, 1) // it is over
	}
	return uint32(min(c.up+min(left, latest)+time.Second-1, latest) / time.Second)
}

// expiry is the inverse of ends, but for parts of a second.
func (c clock) expiry(e entry) time.Time {
	if e.expires == 0 {
		return time.Time{}
	}
	return c.now.Add(time.Duration(e.expires)*time.Second - c.up).UTC().Truncate(time.Second)
}

func (c clock) lifetime(lifetime time.Duration) uint32 {
	if lifetime == 0 {
		return 0
	}
	return c.ends(c.now.Add(lifetime))
}
