package blocklist

import (
	"math"
	"testing"
	"time"
)

// An end that is shown and read again is the same one, at any time.
func TestEndsAndBack(t *testing.T) {
	c := clock{now: time.Unix(1_800_000_000, 123_456_789), up: 1234*time.Second + 987_654_321, boot: 1234}
	for range 1000 {
		for _, e := range []entry{{expires: 4000}, {expires: 1_000_000}} {
			if got := c.ends(c.expiry(e)); got != e.expires {
				t.Fatalf("%v: %s is %d, not %d", c, c.expiry(e), got, e.expires)
			}
		}
		c.now, c.up = c.now.Add(123_456_789), c.up+123_456_789
		c.boot = uint32(c.up / time.Second)
	}
	if got := c.ends(c.now); got != c.boot {
		t.Errorf("now: %d, want %d", got, c.boot)
	}
	if got := c.ends(c.now.Add(time.Nanosecond)); got != c.boot+1 {
		t.Errorf("soon: %d, want %d", got, c.boot+1)
	}
	if got := c.ends(time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC)); got != math.MaxUint32 {
		t.Errorf("beyond: %d", got)
	}
	if c.lifetime(0) != 0 || !c.expiry(entry{}).IsZero() {
		t.Error("for ever ends")
	}
}
