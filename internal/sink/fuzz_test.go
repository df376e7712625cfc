package sink

import (
	"errors"
	"slices"
	"testing"

	"bpfnet/internal/fault"
)

// FuzzParse checks that what is refused is an error of usage.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"stdout", "syslog=/dev/log", "webhook=https://h/a?b=c,secret-file=/a", "webhook,url-env=A,user=a,password-env=B",
		"elasticsearch=https://h:9200/a,api-key-env=A", "otlp=https://h:4318,token-file=/a", "exec=/bin/true,arg=,arg=b=c,timeout=1s", "file=,", "=,=", "exec=a,timeout=-1h",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := Parse(text)
		if err != nil && !errors.Is(err, fault.ErrUsage) {
			t.Error(err)
		}
		if err == nil && (s.Name() == "" || !slices.Contains(Kinds(), s.Kind())) {
			t.Errorf("%q, %q", s.Name(), s.Kind())
		}
	})
}

// FuzzBulk checks that each alert is counted once, whatever a server answers.
func FuzzBulk(f *testing.F) {
	for _, seed := range []string{
		`{"errors":false,"items":[{"create":{"status":201}},{"create":{"status":409}}]}`,
		`{"errors":true,"items":[{"create":{"status":429,"error":{"type":"a","reason":"b"}}},{"create":{"status":400}}]}`,
		`{"errors":true,"items":[null,{"index":{"status":-1}}]}`, `{}`, `<html>`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, answer []byte) {
		events := make([]Event, 2)
		r := readBulk(answer, events)
		if lost := r.refused + len(r.rest); lost > len(events) || (lost > 0) != (r.err != nil) {
			t.Errorf("%+v", r)
		}
	})
}

// FuzzExport checks that each alert is counted once, whatever a server answers.
func FuzzExport(f *testing.F) {
	for _, seed := range []string{
		"", "\x0a\x00", "\x0a\x02\x08\x01", "\x0a\x07\x08\x09\x12\x03why", "\x0a\x05\x12\x03why", "\x0a\x0b\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", `{}`, `<html>`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, answer []byte) {
		events := make([]Event, 2)
		r, warning := readExport(answer, events)
		if lost := r.refused + len(r.rest); r.refused < 0 || lost > len(events) || (lost > 0) != (r.err != nil) || warning != "" && r.err != nil {
			t.Errorf("%+v, %s", r, warning)
		}
		_ = statusText(answer)
	})
}
