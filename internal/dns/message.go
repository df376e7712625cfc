package dns

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	wire "github.com/miekg/dns"
)

// Record is a record of an answer section. Its texts are as in a zone file: what
// isn't printable ASCII in them is \DDD.
type Record struct {
	Name string // in lower case, without its last dot
	Type string // as in a zone file: A, AAAA, TYPE4711
	TTL  time.Duration
	Data string
}

// question is what a message is about; a message may be without, and has no name then.
type question struct {
	name         string // as Record.Name
	qtype, class uint16
}

// message is a query or a response.
type message struct {
	id        uint16
	response  bool
	truncated bool
	rcode     int
	question  question
	answers   []Record
	whole     bool // all records could be read
}

// readMessage reads a message, whatever its question is about; with records, those of
// the answer section are read, too, and what is behind it only for the rest of the
// response code. Of a message that ends too early, or that has a record which can't be
// read, what is in front of that is told.
func readMessage(packed []byte, records bool) (m message, err error) {
	if len(packed) < headerSize {
		return m, errMalformed
	}
	flags, questions := binary.BigEndian.Uint16(packed[2:]), binary.BigEndian.Uint16(packed[4:])
	if flags>>11&0xf != wire.OpcodeQuery {
		return m, errIgnored
	}
	m = message{
		id: binary.BigEndian.Uint16(packed), response: flags&0x8000 != 0, truncated: flags&0x200 != 0, rcode: int(flags & 0xf),
	}
	at := headerSize
	switch {
	case questions > 1 || questions == 0 && !m.response:
		return message{}, errMalformed
	case questions == 1:
		name, next, err := wire.UnpackDomainName(packed, at)
		if err != nil || next+questionTail > len(packed) {
			return message{}, errMalformed
		}
		m.question = question{shownName(name), binary.BigEndian.Uint16(packed[next:]), binary.BigEndian.Uint16(packed[next+2:])}
		at = next + questionTail
	}
	if records {
		m.read(packed, at)
	}
	return m, nil
}

// read reads the records of a message from an offset on.
func (m *message) read(packed []byte, at int) {
	sections := [3]int{}
	for i := range sections {
		sections[i] = int(binary.BigEndian.Uint16(packed[6+2*i:]))
	}
	for range sections[0] {
		if at >= len(packed) { // the package makes an empty record of it
			return
		}
		record, next, err := wire.UnpackRR(packed, at)
		if err != nil {
			return
		}
		m.answers = append(m.answers, newRecord(record))
		at = next
	}
	m.whole = true
	for range sections[1] + sections[2] {
		_, next, err := wire.UnpackDomainName(packed, at)
		if err != nil || next+recordTail > len(packed) {
			return
		}
		if binary.BigEndian.Uint16(packed[next:]) == wire.TypeOPT {
			m.rcode |= int(packed[next+4]) << 4
			return
		}
		at = next + recordTail + int(binary.BigEndian.Uint16(packed[next+8:]))
	}
}

func newRecord(record wire.RR) Record {
	h := record.Header()
	return Record{
		Name: shownName(h.Name), Type: wire.Type(h.Rrtype).String(), TTL: seconds(h.Ttl),
		Data: printable(afterHeader(record.String())),
	}
}

// afterHeader is what a record's text has behind name, TTL, class and type.
func afterHeader(text string) string {
	parts := strings.SplitN(text, "\t", 5)
	return parts[len(parts)-1]
}

// printable is text of which what isn't printable ASCII is as in a zone file: the package
// doesn't see to that for all types.
func printable(text string) string {
	var b strings.Builder
	for i := range len(text) {
		if c := text[i]; c >= ' ' && c <= '~' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "\\%03d", c)
		}
	}
	return b.String()
}

// shownName is a name as people write it, of whatever characters it is.
func shownName(name string) string {
	if name == "." {
		return name
	}
	return strings.ToLower(strings.TrimSuffix(name, "."))
}

// RcodeWord is a response code in lower case, as in noerror, nxdomain, servfail, or
// rcode4000.
func RcodeWord(code int) string {
	word, known := wire.RcodeToString[code]
	switch {
	case code == wire.RcodeBadVers: // which the package calls as TSIG does
		return "badvers"
	case !known:
		return "rcode" + strconv.Itoa(code)
	}
	return strings.ToLower(word)
}

// RcodeWords lists those of codes that have a name.
func RcodeWords() (words []string) {
	for code := range wire.RcodeToString {
		words = append(words, RcodeWord(code))
	}
	slices.Sort(words)
	return slices.Compact(words)
}

// TypeWords lists the names of types in lower case.
func TypeWords() (words []string) {
	for word := range wire.StringToType {
		words = append(words, strings.ToLower(word))
	}
	slices.Sort(words)
	return words
}

// IsRcodeWord says whether RcodeWord may be that.
func IsRcodeWord(word string) bool {
	number, numbered := strings.CutPrefix(word, "rcode")
	_, err := strconv.ParseUint(number, 10, 12)
	return slices.Contains(RcodeWords(), word) || numbered && err == nil
}

// TypeWord is a type as Record has it, from a word in any case; "" if there is none of
// that name.
func TypeWord(word string) string {
	word = strings.ToUpper(word)
	if _, known := wire.StringToType[word]; known {
		return word
	}
	number, numbered := strings.CutPrefix(word, "TYPE")
	if n, err := strconv.ParseUint(number, 10, 16); err == nil && numbered {
		return wire.Type(n).String()
	}
	return ""
}
