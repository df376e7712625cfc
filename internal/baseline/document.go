// Package baseline learns from samples what endpoints normally do - how much they move
// by hour of week, whom they contact and at which ports - into a file that people can
// read and edit, and notices what deviates from it. All of it are functions of samples
// and their time. It doesn't touch the kernel.
package baseline

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"bpfnet/internal/traffic"
)

// Schema names the document.
const Schema = "bpfnet.baseline/v1"

// Document is what endpoints normally do.
type Document struct {
	Schema        string     `json:"schema"`
	WindowSeconds uint64     `json:"window_seconds"` // that volumes are of
	LearnedFrom   *time.Time `json:"learned_from"`   // the first sample; null, as the next: there was none
	LearnedUntil  *time.Time `json:"learned_until"`  // the last one
	Endpoints     []Endpoint `json:"endpoints"`      // by name
}

// Endpoint is what all Pods of a workload, or another endpoint, do.
type Endpoint struct {
	Endpoint string   `json:"endpoint"` // as NameOf has it
	Peers    []string `json:"peers"`    // addresses and prefixes; null: not known
	Ports    []string `json:"ports"`    // "443/tcp", or "tcp" for all of a transport; null: not known
	Volume   []Cell   `json:"volume"`   // by hour of week
}

// Cell is what one of its Pods moves in a window of an hour of the week.
type Cell struct {
	Hour            string `json:"hour"` // in UTC, "mon 08"
	Windows         uint64 `json:"windows"`
	TransmitBytes   Usual  `json:"transmit_bytes"`
	TransmitPackets Usual  `json:"transmit_packets"`
	ReceiveBytes    Usual  `json:"receive_bytes"`
	ReceivePackets  Usual  `json:"receive_packets"`
}

// Usual is what windows have had.
type Usual struct {
	Median uint64 `json:"median"`
	MAD    uint64 `json:"mad"`  // the median of the distances from the median
	Most   uint64 `json:"most"` // in one window
}

// Metric is what windows have.
type Metric string

// metrics are the parts of a cell: those that an endpoint transmits, and then as many
// that it receives.
var metrics = [...]struct {
	Metric
	of    func(*Cell) *Usual
	least float64 // MAD of a window
}{
	{"transmit_bytes", func(c *Cell) *Usual { return &c.TransmitBytes }, leastBytes},
	{"transmit_packets", func(c *Cell) *Usual { return &c.TransmitPackets }, leastPackets},
	{"receive_bytes", func(c *Cell) *Usual { return &c.ReceiveBytes }, leastBytes},
	{"receive_packets", func(c *Cell) *Usual { return &c.ReceivePackets }, leastPackets},
}

// amounts are one of each metric.
type amounts [len(metrics)]uint64

func amountsOf(c traffic.Counters) amounts {
	return amounts{c.TransmitBytes, c.TransmitPackets, c.ReceiveBytes, c.ReceivePackets}
}

// since is by how much counters grew. If one is less than it was they have all begun
// anew.
func (a amounts) since(before amounts) amounts {
	for i := range a {
		if a[i] < before[i] {
			return a
		}
	}
	for i := range a {
		a[i] -= before[i]
	}
	return a
}

// hours is how many a week has.
const hours = 7 * 24

var days = [...]string{"mon", "tue", "wed", "thu", "fri", "sat", "sun"}

// hourOf is the number of the hour of the week, from Monday 0:00 UTC.
func hourOf(at time.Time) int {
	at = at.UTC()
	return (int(at.Weekday())+6)%7*24 + at.Hour()
}

func hourName(hour int) string { return fmt.Sprintf("%s %02d", days[hour/24], hour%24) }

// parseHour is the opposite of hourName.
func parseHour(text string) (int, bool) {
	day, hour, ok := strings.Cut(text, " ")
	d := slices.Index(days[:], day)
	h, err := strconv.Atoi(hour)
	if !ok || d < 0 || err != nil || len(hour) != 2 || h < 0 || h > 23 {
		return 0, false
	}
	return d*24 + h, true
}

// sort puts everything into its order.
func (d *Document) sort() {
	slices.SortFunc(d.Endpoints, func(a, b Endpoint) int { return cmp.Compare(a.Endpoint, b.Endpoint) })
	for _, e := range d.Endpoints {
		slices.SortFunc(e.Volume, func(a, b Cell) int {
			x, _ := parseHour(a.Hour)
			y, _ := parseHour(b.Hour)
			return cmp.Compare(x, y)
		})
	}
}

// Find returns the document with only the endpoint of a name, false if it has none.
func (d Document) Find(name string) (Document, bool) {
	i := slices.IndexFunc(d.Endpoints, func(e Endpoint) bool { return e.Endpoint == name })
	if i < 0 {
		return d, false
	}
	d.Endpoints = d.Endpoints[i : i+1]
	return d, true
}

// Names are the names of the endpoints.
func (d Document) Names() []string {
	names := make([]string, len(d.Endpoints))
	for i, e := range d.Endpoints {
		names[i] = e.Endpoint
	}
	return names
}

// Encode writes a document for people: a line for each cell and a few for the rest, in
// ASCII.
func (d Document) Encode() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "{\n  \"schema\": %s,\n  \"window_seconds\": %d,\n  \"learned_from\": %s,\n  \"learned_until\": %s,\n  \"endpoints\": [",
		encoded(d.Schema), d.WindowSeconds, encoded(d.LearnedFrom), encoded(d.LearnedUntil))
	for i, e := range d.Endpoints {
		fmt.Fprintf(&b, "%s\n    {\n      \"endpoint\": %s,\n      \"peers\": %s,\n      \"ports\": %s,\n      \"volume\": [",
			comma(i), encoded(e.Endpoint), encoded(e.Peers), encoded(e.Ports))
		for j, c := range e.Volume {
			fmt.Fprintf(&b, "%s\n        %s", comma(j), encoded(c))
		}
		b.WriteString(closing(len(e.Volume), "\n      ") + "]\n    }")
	}
	b.WriteString(closing(len(d.Endpoints), "\n  ") + "]\n}\n")
	return b.Bytes()
}

func comma(i int) string {
	if i == 0 {
		return ""
	}
	return ","
}

// closing is what stands before the end of an array that isn't empty.
func closing(n int, indent string) string {
	if n == 0 {
		return ""
	}
	return indent
}

// encoded is JSON with a space behind commas and colons of which no string is part, and
// without characters that a terminal may obey.
func encoded(value any) string {
	text, err := json.Marshal(value)
	if err != nil {
		panic(err) // these types have JSON
	}
	var b strings.Builder
	inside, escaped := false, false
	for _, r := range string(text) {
		switch {
		case r > 0xffff:
			r -= 0x10000
			fmt.Fprintf(&b, `\u%04x\u%04x`, 0xd800+r>>10, 0xdc00+r&0x3ff)
		case r >= 0x7f:
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			b.WriteRune(r)
		}
		if !inside && (r == ',' || r == ':') {
			b.WriteByte(' ')
		}
		if r == '"' && !escaped {
			inside = !inside
		}
		escaped = r == '\\' && !escaped
	}
	return b.String()
}
