package baseline

import (
	"cmp"
	"math"
	"slices"

	"bpfnet/internal/detect"
)

// The least MAD of a window: who is silent otherwise may say a little.
const (
	leastBytes   = 1000
	leastPackets = 10
)

// normal is how many times the MAD the standard deviation of values is that are
// normally distributed.
const normal = 1.4826022185056018

// weighted is a value that counts as often as its weight.
type weighted struct{ value, weight float64 }

// spread is as how many values what is usual counts when others join: the middles of so
// many parts of the normal distribution. It is a multiple of four, so that half of them
// are nearer to the median than the MAD.
const spread = 40

// deviates are those values in MADs from the median.
var deviates = func() (z [spread]float64) {
	for i := range z {
		z[i] = math.Erfinv(2*(float64(i)+0.5)/spread - 1)
	}
	mad := (z[spread*3/4-1] + z[spread*3/4]) / 2
	for i := range z {
		z[i] /= mad
	}
	return z
}()

// values are what so many windows may have had of which only this is known.
func (u Usual) values(windows uint64) []weighted {
	all := make([]weighted, spread)
	for i, z := range deviates {
		all[i] = weighted{float64(u.Median) + z*float64(u.MAD), float64(windows) / spread}
	}
	return all
}

// usualOf is what is usual of values; most is the largest that there was.
func usualOf(values []weighted, most uint64) Usual {
	middle := median(values)
	for i := range values {
		values[i].value = math.Abs(values[i].value - middle)
	}
	return Usual{Median: whole(middle), MAD: whole(median(values)), Most: most}
}

// median sorts values.
func median(values []weighted) float64 {
	slices.SortFunc(values, func(a, b weighted) int { return cmp.Compare(a.value, b.value) })
	sum := 0.0
	for _, v := range values {
		sum += v.weight
	}
	half, below := sum/2, 0.0
	for i, v := range values {
		below += v.weight
		switch rest := below - half; {
		case math.Abs(rest) < 1e-9*sum && i+1 < len(values):
			return (v.value + values[i+1].value) / 2
		case rest > 0:
			return v.value
		}
	}
	return values[len(values)-1].value
}

// largest is the largest number that there is in a document.
const largest = 1 << 62

// whole rounds what isn't less than 0 but by rounding.
func whole(value float64) uint64 {
	switch value = math.Round(value); {
	case value <= 0:
		return 0
	case value >= largest:
		return largest
	}
	return uint64(value)
}

// fold adds windows to a cell.
func (c *Cell) fold(windows uint64, values [len(metrics)][]weighted, most [len(metrics)]uint64) {
	for i, m := range metrics {
		u := m.of(c)
		if c.Windows > 0 {
			values[i] = append(values[i], u.values(c.Windows)...)
		}
		*u = usualOf(values[i], max(u.Most, most[i]))
	}
	c.Windows = min(c.Windows+windows, largest)
}

// pool makes one cell of several.
func pool(cells []Cell) (all Cell) {
	if len(cells) == 1 {
		return cells[0]
	}
	var values [len(metrics)][]weighted
	var most [len(metrics)]uint64
	windows := uint64(0)
	for i := range cells {
		c := &cells[i]
		windows += c.Windows
		for j, m := range metrics {
			u := m.of(c)
			values[j] = append(values[j], u.values(c.Windows)...)
			most[j] = max(most[j], u.Most)
		}
	}
	if windows > 0 {
		all.fold(windows, values, most)
	}
	return all
}

// Week is a cell of all hours.
func (e Endpoint) Week() Cell { return pool(e.Volume) }

// score is how many standard deviations, robustly estimated, a window is above what is
// usual: (x - median) / (1.4826 MAD), where MAD is at least the part of the median that
// bursts want, and at least so much.
func (u Usual) score(x uint64, least float64) float64 {
	return (float64(x) - float64(u.Median)) / u.deviation(least)
}

func (u Usual) deviation(least float64) float64 {
	return normal * max(float64(u.MAD), detect.LeastSpread*float64(u.Median), least)
}

// threshold is the least that has a score and is more than there ever was.
func (u Usual) threshold(score, least float64) uint64 {
	return whole(max(math.Ceil(float64(u.Median)+score*u.deviation(least)), float64(u.Most)+1))
}

// Basis is of what hours something is usual.
type Basis string

// The bases, in the order in which they are tried.
const (
	OfHour  Basis = "hour"  // this one
	OfThree Basis = "three" // with the ones before and after
	OfDays  Basis = "days"  // this one of all days
	OfWeek  Basis = "week"  // all that are known
)

// enough is how many windows have to be known of what is usual.
const enough = 30

// expect is what is usual in an hour of the week; false: too little is known.
func (k *known) expect(hour int) (expected, bool) {
	for _, b := range []struct {
		Basis
		wanted func(h int) bool
	}{
		{OfHour, func(h int) bool { return h == hour }},
		{OfThree, func(h int) bool { return (h-hour+1+hours)%hours <= 2 }},
		{OfDays, func(h int) bool { return h%24 == hour%24 }},
		{OfWeek, func(int) bool { return true }},
	} {
		var cells []Cell
		windows := uint64(0)
		for h, c := range k.cells {
			if c != nil && b.wanted(h) {
				cells = append(cells, *c)
				windows += c.Windows
			}
		}
		if windows >= enough {
			return expected{pool(cells), b.Basis}, true
		}
	}
	return expected{}, false
}

// expected is what is usual, and of what hours.
type expected struct {
	Cell
	Basis
}
