package detect

import (
	"fmt"
	"math"
	"math/big"
	"strconv"
	"strings"
	"time"

	"bpfnet/internal/fault"
)

// Metric is what a rule adds up.
type Metric string

// The metrics.
const (
	Bytes       Metric = "bytes"
	Packets     Metric = "packets"
	Connections Metric = "connections" // transmit: opened, receive: opened by others
)

// Direction is whose traffic counts, as the endpoint sees it.
type Direction string

// The directions.
const (
	Transmit Direction = "transmit"
	Receive  Direction = "receive"
	Both     Direction = "both"
)

// Burst is the rule that fires when an endpoint moves much in little time.
type Burst struct {
	Metric    Metric
	Direction Direction
	Amount    uint64 // the threshold, or the least that it is
	Timing
	Factor float64 // of MADs above the endpoint's mean; 0: Amount is the threshold
}

// The limits of a burst.
const (
	largestAmount = 1 << 60
	largestFactor = 1000
)

// units are what amounts are given in, with their size in bytes. Those in which an
// amount is written come first, the largest before.
var units = []struct {
	name string
	size *big.Rat
}{
	{"GiB", big.NewRat(1<<30, 1)}, {"GB", big.NewRat(1e9, 1)}, {"MiB", big.NewRat(1<<20, 1)}, {"MB", big.NewRat(1e6, 1)},
	{"KiB", big.NewRat(1<<10, 1)}, {"kB", big.NewRat(1e3, 1)}, {"B", big.NewRat(1, 1)},
	{"Gbit", big.NewRat(1e9, 8)}, {"Mbit", big.NewRat(1e6, 8)}, {"kbit", big.NewRat(1e3, 8)},
}

// burstForm is what people are told.
const burstForm = "a burst is AMOUNT/TIME[,transmit|receive|both][,for=TIME][,mad=FACTOR], as in 10MiB/10s,transmit, 5000packets/1s or 500connections/10s"

// ParseBurst reads "10MiB/10s", with options behind commas: a direction, "for=30s",
// "mad=8". Errors are of kind fault.ErrUsage.
func ParseBurst(text string) (Burst, error) {
	b, err := parseBurst(text)
	if err != nil {
		return Burst{}, fault.New(fault.ErrUsage, "read burst %q: %w", text, err).Hint("%s", burstForm)
	}
	return b, nil
}

func parseBurst(text string) (b Burst, err error) {
	b.Timing, err = parseRule(text, longestWindow, func(amount string) (err error) {
		b.Amount, b.Metric, err = parseAmount(amount)
		return err
	}, b.option)
	if b.Direction == "" {
		b.Direction = Both
	}
	return b, err
}

// parseAmount reads a number with a unit behind it.
func parseAmount(text string) (uint64, Metric, error) {
	digits := strings.IndexFunc(text, func(r rune) bool { return (r < '0' || r > '9') && r != '.' })
	if digits < 0 {
		return 0, "", fmt.Errorf("%q has no unit: %s", text, unitNames())
	}
	number, unit := text[:digits], text[digits:]
	n, ok := parseNumber(number)
	if !ok {
		return 0, "", fmt.Errorf("%q doesn't begin with a number", text)
	}
	metric := Metric(unit)
	if metric != Packets && metric != Connections {
		size, err := unitSize(unit)
		if err != nil {
			return 0, "", err
		}
		metric = Bytes
		n.Mul(n, size)
	}
	if !n.IsInt() || n.Sign() == 0 || n.Cmp(big.NewRat(largestAmount, 1)) > 0 {
		return 0, "", fmt.Errorf("%q isn't a number of %s from 1 to 2^60", text, metric)
	}
	return n.Num().Uint64(), metric, nil
}

// parseNumber reads digits, with or without a point between them.
func parseNumber(text string) (*big.Rat, bool) {
	whole, fraction, point := strings.Cut(text, ".")
	if whole == "" || point && fraction == "" || strings.Contains(fraction, ".") || len(text) > 30 {
		return nil, false
	}
	return new(big.Rat).SetString(text)
}

func unitSize(name string) (*big.Rat, error) {
	for _, u := range units {
		if u.name == name {
			return u.size, nil
		}
		if strings.EqualFold(u.name, name) {
			return nil, fmt.Errorf("no unit %q, perhaps %s", name, u.name)
		}
	}
	return nil, fmt.Errorf("no unit %q: %s", name, unitNames())
}

func unitNames() string {
	var names []string
	for _, u := range units {
		names = append(names, u.name)
	}
	return strings.Join(append(names, string(Packets), string(Connections)), ", ")
}

// option reads an option.
func (b *Burst) option(name, value string, valued bool) (known, twice bool, err error) {
	switch {
	case !valued && (name == string(Transmit) || name == string(Receive) || name == string(Both)):
		twice, b.Direction = b.Direction != "", Direction(name)
	case valued && name == "mad":
		twice = b.Factor > 0
		b.Factor, err = parseFactor(value)
	default:
		return false, false, nil
	}
	return true, twice, err
}

func parseFactor(text string) (float64, error) {
	factor, err := strconv.ParseFloat(text, 64)
	if err != nil || math.IsNaN(factor) || factor < 0.1 || factor > largestFactor {
		return 0, fmt.Errorf("mad=%s isn't a number from 0.1 to %d", text, largestFactor)
	}
	return factor, nil
}

// String writes the rule so that ParseBurst reads it, and the same one always the
// same.
func (b Burst) String() string {
	text := b.amount() + "/" + seconds(b.Window)
	if b.Direction != Both {
		text += "," + string(b.Direction)
	}
	text += b.lasting()
	if b.Factor > 0 {
		text += ",mad=" + strconv.FormatFloat(b.Factor, 'g', -1, 64)
	}
	return text
}

func (b Burst) amount() string {
	n := strconv.FormatUint(b.Amount, 10)
	if b.Metric != Bytes {
		return n + string(b.Metric)
	}
	for _, u := range units {
		if size := u.size.Num().Uint64(); b.Amount%size == 0 {
			return strconv.FormatUint(b.Amount/size, 10) + u.name
		}
	}
	return n + "B"
}

// Learning is how long an endpoint has to be watched before the rule may fire for it;
// 0 without a factor.
func (b Burst) Learning() time.Duration {
	if b.Factor == 0 {
		return 0
	}
	return (learnWindows + 1) * b.Window // the first may not be a whole one
}
