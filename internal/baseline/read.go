package baseline

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"

	"bpfnet/internal/fault"
)

// reader reads a document as people may have edited it.
type reader struct {
	name string
	text []byte
	in   *json.Decoder
	at   int64 // where the last token begins
}

// Read reads a document. An error of kind fault.ErrUsage has the line and column of what
// is wrong with it: what isn't JSON, what there is twice, what is missing, and what no
// baseline has.
func Read(text []byte, name string) (Document, error) {
	r := &reader{name: name, text: text, in: json.NewDecoder(bytes.NewReader(text))}
	r.in.UseNumber()
	d, err := r.document()
	if err == nil {
		if _, err = r.token(); errors.Is(err, io.EOF) {
			d.sort()
			return d, nil
		}
		if err == nil {
			err = errors.New("there is more behind the baseline")
		}
	}
	return Document{}, r.wrong(err)
}

// wrong says where the last token begins.
func (r *reader) wrong(err error) error {
	at := min(max(r.at, 0), int64(len(r.text)))
	line := bytes.Count(r.text[:at], []byte("\n")) + 1
	column := at - int64(bytes.LastIndexByte(r.text[:at], '\n'))
	e := fault.New(fault.ErrUsage, "%s:%d:%d: %w", r.name, line, column, err)
	if len(bytes.TrimSpace(r.text)) == 0 {
		return e.Hint("the file is empty: a shell empties what > leads to before the command reads it")
	}
	return e.Hint("bpfnet baseline learn   prints such files")
}

// token reads the next one.
func (r *reader) token() (json.Token, error) {
	r.at = r.in.InputOffset()
	for r.at < int64(len(r.text)) && bytes.IndexByte([]byte(" \t\r\n,:"), r.text[r.at]) >= 0 {
		r.at++
	}
	t, err := r.in.Token()
	var syntax *json.SyntaxError
	switch {
	case errors.As(err, &syntax):
		r.at = syntax.Offset - 1
	case errors.Is(err, io.ErrUnexpectedEOF):
		r.at = int64(len(r.text))
		return nil, errors.New("the file ends in the middle")
	}
	return t, err
}

// object reads an object; field reads the value of a key, and returns false of one that
// there isn't. All of required have to be there.
func (r *reader) object(what string, required []string, field func(key string) (bool, error)) error {
	t, err := r.token()
	if err != nil {
		return endless(err)
	}
	if t != json.Delim('{') {
		return fmt.Errorf("%s isn't an object", what)
	}
	begin := r.at
	var seen []string
	for r.in.More() {
		t, err := r.token()
		if err != nil {
			return endless(err)
		}
		key, _ := t.(string)
		if slices.Contains(seen, key) {
			return fmt.Errorf("%s has %q twice", what, key)
		}
		at := r.at
		known, err := field(key)
		if err != nil {
			return err
		}
		if !known {
			r.at = at
			return fmt.Errorf("%s has no %q", what, key)
		}
		seen = append(seen, key)
	}
	if _, err := r.token(); err != nil { // }
		return endless(err)
	}
	for _, key := range required {
		if !slices.Contains(seen, key) {
			r.at = begin
			return fmt.Errorf("%s: %s is missing", what, key)
		}
	}
	return nil
}

// endless makes an error of an end that comes too early.
func endless(err error) error {
	if errors.Is(err, io.EOF) {
		return errors.New("the file ends in the middle")
	}
	return err
}

// array reads an array, of which item reads one.
func (r *reader) array(what string, item func() error) error {
	t, err := r.token()
	if err != nil {
		return endless(err)
	}
	if t != json.Delim('[') {
		return fmt.Errorf("%s isn't an array", what)
	}
	return r.items(item)
}

func (r *reader) items(item func() error) error {
	for r.in.More() {
		if err := item(); err != nil {
			return err
		}
	}
	_, err := r.token() // ]
	return endless(err)
}

// string reads a string, which check looks at.
func (r *reader) string(what string, check func(string) error) (string, error) {
	t, err := r.token()
	if err != nil {
		return "", endless(err)
	}
	s, ok := t.(string)
	if !ok {
		return "", fmt.Errorf("%s isn't a string", what)
	}
	return s, check(s)
}

func (r *reader) number(what string, least, most uint64) (uint64, error) {
	t, err := r.token()
	if err != nil {
		return 0, endless(err)
	}
	text, _ := t.(json.Number)
	n, err := strconv.ParseUint(string(text), 10, 64)
	if err != nil || n < least || n > most {
		return 0, fmt.Errorf("%s isn't an integer from %d to %d", what, least, most)
	}
	return n, nil
}

// time reads a time or null.
func (r *reader) time(what string) (*time.Time, error) {
	t, err := r.token()
	if err != nil || t == nil {
		return nil, endless(err)
	}
	s, _ := t.(string)
	at, err := time.Parse(time.RFC3339, s)
	if err != nil || !writable(at) {
		return nil, fmt.Errorf("%s isn't a time like 2026-01-02T03:04:05Z", what)
	}
	at = at.UTC()
	return &at, nil
}

// writable says whether a time has a year that RFC 3339 has.
func writable(at time.Time) bool { return at.UTC().Year() >= 0 && at.UTC().Year() <= 9999 }

func (r *reader) document() (d Document, err error) {
	names := map[string]bool{}
	err = r.object("the baseline", []string{"schema", "window_seconds", "endpoints"}, func(key string) (bool, error) {
		var err error
		switch key {
		case "schema":
			d.Schema, err = r.string(key, func(s string) error {
				if s != Schema {
					return fmt.Errorf("the schema is %q, not %s", s, Schema)
				}
				return nil
			})
		case "window_seconds":
			if d.WindowSeconds, err = r.number(key, 1, 3600); err == nil {
				err = CheckWindow(time.Duration(d.WindowSeconds) * time.Second)
			}
		case "learned_from":
			d.LearnedFrom, err = r.time(key)
		case "learned_until":
			d.LearnedUntil, err = r.time(key)
		case "endpoints":
			d.Endpoints = []Endpoint{}
			err = r.array(key, func() error {
				e, err := r.endpoint(names)
				d.Endpoints = append(d.Endpoints, e)
				return err
			})
		default:
			return false, nil
		}
		return true, err
	})
	return d, err
}

// CheckWindow returns an error unless hours consist of such windows.
func CheckWindow(window time.Duration) error {
	if window < time.Second || window%time.Second != 0 || time.Hour%window != 0 {
		return fmt.Errorf("a window of %s isn't a whole part of an hour, in whole seconds", window)
	}
	return nil
}

// endpoint reads an endpoint that names don't have yet.
func (r *reader) endpoint(names map[string]bool) (e Endpoint, err error) {
	e.Volume = []Cell{}
	seen := map[string]bool{}
	err = r.object("an endpoint", []string{"endpoint"}, func(key string) (bool, error) {
		var err error
		switch key {
		case "endpoint":
			e.Endpoint, err = r.string(key, func(s string) error {
				if names[s] {
					return fmt.Errorf("endpoint %q is there twice", s)
				}
				names[s] = true
				return checkName(s)
			})
		case "peers":
			e.Peers, err = r.strings(key, func(s string) error {
				_, err := parsePeer(s)
				return err
			})
		case "ports":
			e.Ports, err = r.strings(key, checkPort)
		case "volume":
			err = r.array(key, func() error {
				c, err := r.cell(seen)
				e.Volume = append(e.Volume, c)
				return err
			})
		default:
			return false, nil
		}
		return true, err
	})
	return e, err
}

// strings reads an array of strings, or null.
func (r *reader) strings(what string, check func(string) error) ([]string, error) {
	t, err := r.token()
	if err != nil || t == nil {
		return nil, endless(err)
	}
	if t != json.Delim('[') {
		return nil, fmt.Errorf("%s isn't an array", what)
	}
	all := []string{}
	return all, r.items(func() error {
		s, err := r.string("one of "+what, check)
		all = append(all, s)
		return err
	})
}

// cell reads a cell of an hour that seen doesn't have yet.
func (r *reader) cell(seen map[string]bool) (c Cell, err error) {
	err = r.object("a volume", cellKeys, func(key string) (bool, error) {
		var err error
		switch key {
		case "hour":
			c.Hour, err = r.string(key, func(s string) error {
				if _, ok := parseHour(s); !ok {
					return fmt.Errorf("hour %q isn't like %q", s, hourName(8))
				}
				if seen[s] {
					return fmt.Errorf("hour %q is there twice", s)
				}
				seen[s] = true
				return nil
			})
			return true, err
		case "windows":
			c.Windows, err = r.number(key, 1, largest)
			return true, err
		}
		for _, m := range metrics {
			if key == string(m.Metric) {
				*m.of(&c), err = r.usual(key)
				return true, err
			}
		}
		return false, nil
	})
	return c, err
}

var (
	cellKeys  = []string{"hour", "windows", "transmit_bytes", "transmit_packets", "receive_bytes", "receive_packets"}
	usualKeys = []string{"median", "mad", "most"}
)

func (r *reader) usual(what string) (u Usual, err error) {
	err = r.object(what, usualKeys, func(key string) (bool, error) {
		var err error
		switch key {
		case "median":
			u.Median, err = r.number(key, 0, largest)
		case "mad":
			u.MAD, err = r.number(key, 0, largest)
		case "most":
			u.Most, err = r.number(key, 0, largest)
		default:
			return false, nil
		}
		return true, err
	})
	return u, err
}
