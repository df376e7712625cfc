package feed

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"time"
)

func (r *reader) readIPSet() error {
	var words []word // of a line
	return r.lines(func(line []byte, number int) (err error) {
		if words, err = ipsetWords(words[:0], line, number); err != nil {
			r.wrong(place{number, 1}, err)
			return nil
		}
		return r.ipsetCommand(words)
	})
}

func (r *reader) ipsetCommand(words []word) error {
	if len(words) == 0 || isComment(words[0].text) {
		return nil
	}
	switch string(words[0].text) {
	case "add":
		return r.ipsetAdd(words)
	case "create", "flush", "destroy", "COMMIT":
	default:
		r.wrong(words[0].at, wrong(string(words[0].text), "is not a command of ipset save"))
	}
	return nil
}

// ipsetAdd reads "add SET ELEMENT OPTIONS".
func (r *reader) ipsetAdd(words []word) error {
	const element = 2
	if len(words) <= element {
		r.wrong(words[0].at, errors.New("an element is missing: add SET ELEMENT"))
		return nil
	}
	text, at := words[element].text, words[element].at
	e, wrongAt, err := r.ipsetOptions(words[element+1:])
	if bytes.IndexByte(text, ',') >= 0 {
		wrongAt, err = at, wrong(string(text), "has more than an address: only sets of type hash:ip and hash:net are read")
	}
	if err != nil {
		r.wrong(wrongAt, err)
		return nil
	}
	e.Line, e.Column = at.line, at.column
	return r.address(text, e)
}

// ipsetOptions reads those that say something about an element.
func (r *reader) ipsetOptions(words []word) (e Entry, at place, err error) {
	for i := 0; i < len(words); i++ {
		name := string(words[i].text)
		switch {
		case name == "nomatch":
			return e, words[i].at, errors.New("nomatch takes addresses out of others, which a list of addresses can't say")
		case name != "timeout" && name != "comment":
			continue
		case i+1 == len(words):
			return e, words[i].at, fmt.Errorf("%s has no value", name)
		}
		i++
		if name == "comment" {
			e.Reason = reason(words[i].text)
		} else if e.Expires, err = r.after(string(words[i].text)); err != nil {
			return e, words[i].at, err
		}
	}
	return e, at, nil
}

// mostSeconds is as long as a timeout may be: 100 years.
const mostSeconds = 100 * 365 * 24 * 3600

// after returns the time some seconds from now; 0 is never.
func (r *reader) after(seconds string) (time.Time, error) {
	n, err := strconv.ParseUint(seconds, 10, 32)
	switch {
	case err != nil || n > mostSeconds:
		return time.Time{}, wrong(seconds, "is not a number of seconds")
	case n == 0:
		return time.Time{}, nil
	}
	return r.Now.Add(time.Duration(n) * time.Second), nil
}

// word is a part of a line and where it stands.
type word struct {
	text []byte
	at   place
}

// ipsetWords appends those of a line; what is in quotes is one word.
func ipsetWords(words []word, line []byte, number int) ([]word, error) {
	for pos := skipBlanks(line, 0); pos < len(line); pos = skipBlanks(line, pos) {
		start, end := pos, pos
		if line[pos] == '"' {
			start++
			length := bytes.IndexByte(line[start:], '"')
			if length < 0 {
				return words, errors.New("a quote is not closed")
			}
			end = start + length
			pos = end + 1
		} else {
			for end < len(line) && !isBlank(line[end]) {
				end++
			}
			pos = end
		}
		words = append(words, word{line[start:end], place{number, start + 1}})
	}
	return words, nil
}
