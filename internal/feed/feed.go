// Package feed reads the lists of addresses, prefixes and domains that people
// publish, in whatever format they publish them.
package feed

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"

	"bpfnet/internal/fault"
)

// Entry is one thing that a feed lists.
type Entry struct {
	Prefix       netip.Prefix // masked, IPv4 also if written as IPv4-mapped IPv6; invalid for domains
	Domain       string       // lower case, without the last dot, may begin with "*."; "" for prefixes
	List         string       // the member "list" of bpfnet's own export, else ""
	Reason       string       // comment or SBL number, "" if there is none: at most 127 bytes of UTF-8, no control characters
	Expires      time.Time    // zero: never; may have passed
	Line, Column int          // where it stands: both from 1, the column in bytes
}

// Options say how to read a feed.
type Options struct {
	Name   string // of the input, for errors
	Format Format

	// Column is the one of CSV to read: a name in its header or a number from 1.
	// With FormatAuto it makes the input CSV. "" is the first column whose first
	// cell below the header is an address or a prefix, or else a domain; with
	// Domains the other way round.
	Column string

	// Domains asks for the name where an address and a name stand side by side:
	// in a row of CSV, an object of JSON or YAML, or a line of a hosts file with
	// a real address. Of hosts files that send names to nowhere, the names are
	// read in any case.
	Domains bool

	Now time.Time // what timeouts count from
}

// LineError says what is wrong with an input, and where.
type LineError struct {
	Name         string
	Line, Column int
	Err          error
}

func (e LineError) Error() string {
	return fmt.Sprintf("%s:%d:%d: %v", e.Name, e.Line, e.Column, e.Err)
}

// Unwrap returns the cause.
func (e LineError) Unwrap() error { return e.Err }

// place is where something stands: line and column from 1.
type place struct{ line, column int }

// reader is one call of Read.
type reader struct {
	Options
	in     *input
	add    func(Entry) error
	refuse func(LineError)
}

// Read calls add for each entry, in the order of the input, and refuse for each
// that is wrong. It stops with the error of add, with that of r, and with one of
// kind fault.ErrUsage when the input as a whole can't be used: then what was
// added before isn't all that it lists.
func Read(r io.Reader, o Options, add func(Entry) error, refuse func(LineError)) error {
	in, err := open(r, o.Name)
	if err == nil {
		err = (&reader{Options: o, in: in, add: add, refuse: refuse}).read()
	}
	if wrong, ok := err.(LineError); ok {
		return fault.New(fault.ErrUsage, "%w", wrong)
	}
	return err
}

func (r *reader) read() error {
	format, err := r.format()
	if err != nil {
		return err
	}
	return map[Format]func() error{
		FormatLines:  r.readLines,
		FormatHosts:  r.readHosts,
		FormatIPSet:  r.readIPSet,
		FormatNFT:    r.readNFT,
		FormatCSV:    r.readCSV,
		FormatJSON:   r.readJSON,
		FormatNDJSON: r.readNDJSON,
		FormatYAML:   r.readYAML,
	}[format]()
}

// format is the one to read: what was asked for, or what the input looks like.
func (r *reader) format() (Format, error) {
	switch {
	case r.Format != FormatAuto:
		return r.Format, nil
	case r.Column != "":
		return FormatCSV, nil
	}
	line, err := r.in.firstContent()
	if err != nil {
		return FormatAuto, err
	}
	if len(line) > 0 && line[0] == '<' {
		return FormatAuto, fault.New(fault.ErrUsage, "read %s: this is HTML or XML, not a list", r.Name).
			Hint("the server may have answered with an error page")
	}
	return formatOf(line), nil
}

// lines calls each for every line, which is without its end.
func (r *reader) lines(each func(line []byte, number int) error) error {
	for {
		line, err := r.in.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := each(line, r.in.line); err != nil {
			return err
		}
	}
}

// wrong refuses what stands at a place.
func (r *reader) wrong(at place, err error) {
	r.refuse(LineError{r.Name, at.line, at.column, err})
}

// entry adds the address, prefix, range or domain that text is; e has the rest.
func (r *reader) entry(text []byte, at place, e Entry) error {
	e.Line, e.Column = at.line, at.column
	if looksLikeAddress(text) {
		return r.address(text, e)
	}
	domain, err := ParseDomain(string(text))
	if err != nil {
		r.wrong(at, notAnEntry(text, err))
		return nil
	}
	e.Domain = domain
	return r.add(e)
}

// address is entry for where no domain can stand.
func (r *reader) address(text []byte, e Entry) error {
	if prefix, n := prefix4(text); n > 0 && n == len(text) {
		e.Prefix = prefix
		return r.add(e)
	}
	prefixes, err := ParseAddress(string(text))
	if err != nil {
		r.wrong(place{e.Line, e.Column}, err)
		return nil
	}
	for _, e.Prefix = range prefixes {
		if err := r.add(e); err != nil {
			return err
		}
	}
	return nil
}

// isEntry says whether text is an address, prefix or range, and whether it is a
// domain.
func isEntry(text []byte) (address, domain bool) {
	if looksLikeAddress(text) {
		_, err := ParseAddress(string(text))
		return err == nil, false
	}
	_, err := ParseDomain(string(text))
	return false, err == nil
}
