package feed

import (
	"errors"
	"io"
	"strconv"
	"strings"
	"time"
)

// nft reads the elements of sets from what nft prints or reads.
type nft struct {
	*reader
	text  []byte // of the token
	plain bool   // it isn't in quotes
	at    place
}

func (r *reader) readNFT() error {
	n := &nft{reader: r}
	for after := nftNothing; ; {
		err := n.token()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if after = after.next(string(n.text)); after != nftList {
			continue
		}
		if err := n.elements(); err != nil {
			return err
		}
	}
}

// nftState is how much was read of what a list of elements begins with:
// "elements = {" or "add element … {".
type nftState int

const (
	nftNothing nftState = iota
	nftElements
	nftAssigned
	nftAdd
	nftAddElement
	nftList
)

// next returns the state behind a token.
func (s nftState) next(token string) nftState {
	switch {
	case token == "{" && (s == nftAssigned || s == nftAddElement):
		return nftList
	case token == "elements":
		return nftElements
	case token == "=" && s == nftElements:
		return nftAssigned
	case token == "add" || token == "create":
		return nftAdd
	case token == "element" && s == nftAdd:
		return nftAddElement
	case s == nftAddElement && token != ";" && token != "}":
		return s
	}
	return nftNothing
}

// token reads a word, a text in quotes, or one of {},;= alone, and skips
// comments. It returns io.EOF at the end.
func (n *nft) token() error {
	c, err := n.in.space()
	for ; err == nil && c == '#'; c, err = n.in.space() {
		if err := n.skipLine(); err != nil {
			return err
		}
	}
	if err != nil {
		return err
	}
	n.at, n.text, n.plain = n.in.here(), n.text[:0], c != '"'
	n.in.pos++
	switch {
	case c == '"':
		return n.until(func(c byte) bool { return c == '"' || c == '\n' }, 1)
	case isNFTMark(c):
		n.text = append(n.text, c)
		return nil
	}
	n.text = append(n.text, c)
	return n.until(func(c byte) bool { return c == '\n' || isBlank(c) || isNFTMark(c) }, 0)
}

func isNFTMark(c byte) bool { return strings.IndexByte("{},;=", c) >= 0 }

// skipLine moves on to the end of a line.
func (n *nft) skipLine() error {
	for {
		c, err := n.in.peek()
		if err != nil || c == '\n' {
			return err
		}
		n.in.pos++
	}
}

// until reads the rest of a token, of whose end it skips some bytes.
func (n *nft) until(ends func(byte) bool, skip int) error {
	for {
		c, err := n.in.peek()
		switch {
		case errors.Is(err, io.EOF) && skip > 0 || c == '\n' && skip > 0:
			return n.in.wrong(n.at, "a quote is not closed")
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case ends(c):
			n.in.pos += skip
			return nil
		case len(n.text) == lineBytes:
			return n.in.wrong(n.at, "a word is longer than %d bytes", lineBytes)
		}
		n.text = append(n.text, c)
		n.in.pos++
	}
}

// elements reads them up to the brace that closes their list.
func (n *nft) elements() error {
	begin := n.at
	e := nftElement{now: n.Now}
	for {
		err := n.token()
		if errors.Is(err, io.EOF) {
			return n.in.wrong(begin, "this brace is not closed")
		}
		if err != nil {
			return err
		}
		mark := ""
		if n.plain {
			mark = string(n.text)
		}
		if mark != "," && mark != "}" {
			e.token(string(n.text), n.plain, n.at)
			continue
		}
		if err := n.element(&e); err != nil || mark == "}" {
			return err
		}
		e = nftElement{now: n.Now}
	}
}

// element adds one, if there is any.
func (n *nft) element(e *nftElement) error {
	switch {
	case e.err != nil:
		n.wrong(e.wrongAt, e.err)
	case e.text != "":
		return n.address([]byte(e.text), e.entry)
	}
	return nil
}

// nftElement is an element that is being read.
type nftElement struct {
	now     time.Time
	text    string // the address, prefix or range
	entry   Entry
	option  string // the word before, if it takes a value
	expires bool   // when it expires was said, which counts more than its timeout
	err     error
	wrongAt place
}

func (e *nftElement) fail(at place, err error) {
	if e.err == nil {
		e.err, e.wrongAt = err, at
	}
}

// token takes the next word of an element.
func (e *nftElement) token(text string, plain bool, at place) {
	switch option := e.option; {
	case e.text == "":
		e.text, e.entry.Line, e.entry.Column = text, at.line, at.column
	case option != "":
		e.option = ""
		e.value(option, text, at)
	case plain && (text == "." || text == ":"):
		e.fail(place{e.entry.Line, e.entry.Column}, wrong(e.text, "is only a part of an element: concatenations and maps are not read"))
	case plain && text == "{":
		e.fail(at, errors.New("a brace stands within an element"))
	case plain && (text == "timeout" || text == "expires" || text == "comment" || text == "-"):
		e.option = text
	}
}

// value takes the word behind one that needs it.
func (e *nftElement) value(option, text string, at place) {
	if option == "-" {
		e.text += "-" + text
		return
	}
	if option == "comment" {
		e.entry.Reason = reason([]byte(text))
		return
	}
	after, err := nftDuration(text)
	switch {
	case err != nil:
		e.fail(at, err)
	case option == "timeout" && e.expires:
	case after > 0:
		e.entry.Expires = e.now.Add(after)
	}
	e.expires = e.expires || option == "expires"
}

// nftUnits are in the order in which nft prints them.
var nftUnits = []struct {
	name string
	size time.Duration
}{
	{"w", 7 * 24 * time.Hour}, {"d", 24 * time.Hour}, {"h", time.Hour}, {"ms", time.Millisecond}, {"m", time.Minute}, {"s", time.Second}, {"", time.Second},
}

// nftDuration reads 1d2h3m4s5ms, a number of seconds, or never, which is 0.
func nftDuration(text string) (time.Duration, error) {
	if text == "never" {
		return 0, nil
	}
	var sum time.Duration
	for rest := text; rest != ""; {
		digits := len(rest) - len(strings.TrimLeft(rest, "0123456789"))
		n, err := strconv.ParseUint(rest[:digits], 10, 32)
		rest = rest[digits:]
		unit, size := nftUnit(rest)
		if rest = rest[len(unit):]; err != nil || unit == "" && rest != "" || n > uint64(mostSeconds*time.Second/size) {
			return 0, wrong(text, "is not a time such as 1d2h3m4s")
		}
		sum = min(sum+time.Duration(n)*size, mostSeconds*time.Second)
	}
	return sum, nil
}

// nftUnit returns the unit that text begins with.
func nftUnit(text string) (string, time.Duration) {
	for _, u := range nftUnits {
		if strings.HasPrefix(text, u.name) {
			return u.name, u.size
		}
	}
	return "", time.Second
}
