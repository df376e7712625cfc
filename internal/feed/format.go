package feed

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"bpfnet/internal/fault"
	"bpfnet/internal/nearest"
)

// Format is how a feed is written.
type Format int

// The formats. Spamhaus' DROP is FormatLines or FormatNDJSON.
const (
	FormatAuto   Format = iota // the first that fits the first line with content
	FormatLines                // one entry a line; comments begin with #, ; or //
	FormatHosts                // an address, then names
	FormatIPSet                // ipset save
	FormatNFT                  // nft list, and nft's add element
	FormatCSV                  // separated by commas, semicolons or tabs
	FormatJSON                 // documents of any layout
	FormatNDJSON               // one document a line
	FormatYAML
)

var formatWords = []string{"auto", "lines", "hosts", "ipset", "nft", "csv", "json", "ndjson", "yaml"}

func (f Format) String() string { return formatWords[f] }

// Formats returns the words that ParseFormat takes.
func Formats() []string { return slices.Clone(formatWords) }

// ParseFormat returns the format that a word names, or an error of kind
// fault.ErrUsage.
func ParseFormat(word string) (Format, error) {
	if i := slices.Index(formatWords, word); i >= 0 {
		return Format(i), nil
	}
	err := fault.New(fault.ErrUsage, "no format %q: one of %s", word, strings.Join(formatWords, ", "))
	if near := nearest.Word(word, formatWords); near != "" {
		err.Hint("did you mean %s?", near)
	}
	return FormatAuto, err
}

// detectors say what the first line with content tells, in the order in which
// they are asked. What nothing fits is FormatLines.
var detectors = []struct {
	format Format
	fits   func(line []byte, words []string) bool
}{
	{FormatNDJSON, func(line []byte, _ []string) bool { return line[0] == '{' && json.Valid(line) }},
	{FormatJSON, func(line []byte, _ []string) bool { return line[0] == '{' || line[0] == '[' }},
	{FormatYAML, func(line []byte, _ []string) bool { return yamlStart.Match(line) }},
	{FormatNFT, func(_ []byte, words []string) bool { return startsNFT(words) }},
	{FormatIPSet, func(_ []byte, words []string) bool { return startsIPSet(words) }},
	{FormatHosts, func(_ []byte, words []string) bool { return isHosts(words) }},
	{FormatCSV, func(line []byte, _ []string) bool { return isCSV(line) }},
}

// formatOf returns the format of an input by its first line with content.
func formatOf(line []byte) Format {
	if len(line) == 0 {
		return FormatLines
	}
	words := strings.Fields(string(line))
	for _, d := range detectors {
		if d.fits(line, words) {
			return d.format
		}
	}
	return FormatLines
}

var yamlStart = regexp.MustCompile(`^(---|%YAML|- |[A-Za-z_][A-Za-z0-9_-]*:( |$))`)

func startsNFT(words []string) bool {
	switch {
	case len(words) < 2:
		return false
	case words[0] == "add" || words[0] == "create":
		return len(words) > 2 && slices.Contains([]string{"table", "set", "map", "element"}, words[1]) && !startsLikeAddress(words[2])
	case words[0] == "flush":
		return words[1] == "ruleset"
	}
	return slices.Contains([]string{"table", "set", "map", "elements"}, words[0])
}

func startsLikeAddress(word string) bool { return strings.ContainsAny(word, ".:") }

func startsIPSet(words []string) bool {
	return len(words) > 1 && slices.Contains([]string{"create", "add", "flush", "destroy", "-exist", "-!"}, words[0])
}

// isHosts says whether an address and names are all that a line has, up to a
// comment.
func isHosts(words []string) bool {
	if comment := slices.IndexFunc(words, func(word string) bool { return word[0] == '#' }); comment >= 0 {
		words = words[:comment]
	}
	if len(words) < 2 {
		return false
	}
	_, err := netip.ParseAddr(words[0])
	return err == nil && !slices.ContainsFunc(words[1:], notAName)
}

func notAName(word string) bool {
	if isLocalName(word) {
		return false
	}
	_, err := ParseDomain(word)
	return err != nil
}

// isCSV says whether a line has a separator in front of any comment.
func isCSV(line []byte) bool {
	return line[0] == '"' || bytes.ContainsAny(bytes.TrimSpace(beforeComment(line)), ",;\t")
}

func beforeComment(line []byte) []byte {
	for i, c := range line {
		if c == '#' || isBlank(c) && isComment(line[i+1:]) {
			return line[:i]
		}
	}
	return line
}
