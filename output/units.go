package output

import (
	"math"
	"slices"
	"strconv"
	"strings"
)

// prefixes of 1000, 1000², …
var prefixes = []string{"", "k", "M", "G", "T", "P", "E"}

// isUnit says whether a word may follow a number in a table: "ms", "kB", "MB/s".
func isUnit(word string) bool {
	if slices.Contains([]string{"ns", "us", "ms", "s"}, word) {
		return true
	}
	return slices.Contains(prefixes, strings.TrimSuffix(strings.TrimSuffix(word, "/s"), "B"))
}

// Bytes writes a number of bytes for people, in powers of 1000: "1.2 MB".
func Bytes(n uint64) string { return scale(float64(n)) + "B" }

// Rate writes bytes per second for people: "1.2 MB/s".
func Rate(bytesPerSecond float64) string { return scale(bytesPerSecond) + "B/s" }

// Count writes a number of things for people, exact below 10000 and in powers
// of 1000 from there: "9999", "12 k".
func Count(n uint64) string {
	if n < 10000 {
		return strconv.FormatUint(n, 10)
	}
	return scale(float64(n))
}

// PerSecond writes how often a second something happens: "12 k/s".
func PerSecond(n float64) string { return scale(n) + "/s" }

// scale writes n with at most three digits and the prefix that fits: "1.2 M".
func scale(n float64) string {
	if math.IsNaN(n) || math.IsInf(n, 0) || n < 0 {
		n = 0
	}
	i := 0
	for n >= 999.5 && i < len(prefixes)-1 {
		n /= 1000
		i++
	}
	digits := 0
	if n < 9.95 && (i > 0 || n != math.Trunc(n)) {
		digits = 1
	}
	return strconv.FormatFloat(n, 'f', digits, 64) + " " + prefixes[i]
}
