package feed

import (
	"bytes"
	"net/netip"
	"strings"
)

func (r *reader) readLines() error { return r.lines(r.line) }

// line reads one entry, and a comment behind it.
func (r *reader) line(line []byte, number int) error {
	start := skipBlanks(line, 0)
	text := line[start:]
	if prefix, n := prefix4(text); n > 0 && n == len(text) {
		return r.add(Entry{Prefix: prefix, Line: number, Column: start + 1})
	}
	if len(text) == 0 || isComment(text) {
		return nil
	}
	end := rangeEnd(text, wordEnd(text, 0))
	next := skipBlanks(text, end)
	e := Entry{}
	if next < len(text) {
		if !isComment(text[next:]) {
			r.wrong(place{number, start + next + 1}, wrong(string(text[next:]), "stands behind an entry and is no comment"))
			return nil
		}
		e.Reason = comment(text[next:])
	}
	return r.entry(text[:end], place{number, start + 1}, e)
}

func skipBlanks(text []byte, from int) int {
	for from < len(text) && isBlank(text[from]) {
		from++
	}
	return from
}

func isBlank(c byte) bool { return c == ' ' || c == '\t' || c == '\r' }

// isComment says whether text begins like one.
func isComment(text []byte) bool {
	return len(text) > 0 && (text[0] == '#' || text[0] == ';') || bytes.HasPrefix(text, []byte("//"))
}

// comment returns what a comment says.
func comment(text []byte) string {
	mark := string(text[:1])
	return reason(bytes.TrimLeft(text, mark))
}

// wordEnd is where a word ends: at white space, or at a mark of a comment that
// no address has in it.
func wordEnd(text []byte, from int) int {
	for from < len(text) && !isBlank(text[from]) && text[from] != '#' && text[from] != ';' {
		from++
	}
	return from
}

// rangeEnd returns the end of a range whose hyphen has blanks around it, or else
// that of the word.
func rangeEnd(text []byte, end int) int {
	hyphen := skipBlanks(text, end)
	if hyphen == len(text) || text[hyphen] != '-' {
		return end
	}
	return wordEnd(text, skipBlanks(text, hyphen+1))
}

func (r *reader) readHosts() error { return r.lines(r.hostsLine) }

// hostsLine reads an address and the names behind it.
func (r *reader) hostsLine(line []byte, number int) error {
	e := Entry{}
	if i := bytes.IndexByte(line, '#'); i >= 0 {
		line, e.Reason = line[:i], comment(line[i:])
	}
	h := hostsLine{reader: r, line: line, number: number, e: e}
	host, at, ok := h.word()
	if !ok {
		return nil
	}
	if address, err := netip.ParseAddr(string(host)); err != nil {
		r.wrong(at, wrong(string(host), "is not an address: in a hosts file each line begins with one"))
		return nil
	} else if h.pos == len(bytes.TrimRight(line, " \t\r")) {
		r.wrong(at, wrong(string(host), "has no name behind it"))
		return nil
	} else if !r.Domains && !isNowhere(address) {
		return h.hostAddress(host, at)
	}
	return h.names()
}

// hostsLine is a line of a hosts file, without its comment.
type hostsLine struct {
	*reader
	line        []byte
	pos, number int
	e           Entry
}

// word returns the next one, false if there is none.
func (h *hostsLine) word() ([]byte, place, bool) {
	start := skipBlanks(h.line, h.pos)
	h.pos = start
	for h.pos < len(h.line) && !isBlank(h.line[h.pos]) {
		h.pos++
	}
	return h.line[start:h.pos], place{h.number, start + 1}, h.pos > start
}

// names adds those that aren't only this machine's.
func (h *hostsLine) names() error {
	for name, at, ok := h.word(); ok; name, at, ok = h.word() {
		if isLocalName(string(name)) {
			continue
		}
		if err := h.entry(name, at, h.e); err != nil {
			return err
		}
	}
	return nil
}

// hostAddress adds the address, unless all its names are this machine's.
func (h *hostsLine) hostAddress(host []byte, at place) error {
	for name, _, ok := h.word(); ok; name, _, ok = h.word() {
		if !isLocalName(string(name)) {
			return h.entry(host, at, h.e)
		}
	}
	return nil
}

// isNowhere says whether a hosts file has a name there to make it unreachable.
func isNowhere(a netip.Addr) bool { return a.IsUnspecified() || a.IsLoopback() }

// isLocalName says whether a name is one that hosts files have for the machine
// itself.
func isLocalName(name string) bool {
	switch name = strings.ToLower(name); name {
	case "localhost", "localhost.localdomain", "localhost4", "localhost4.localdomain4",
		"localhost6", "localhost6.localdomain6", "broadcasthost", "local", "0.0.0.0":
		return true
	}
	return strings.HasPrefix(name, "ip6-")
}
