package flow

import (
	"context"
	"strings"
	"testing"

	"bpfnet/internal/datapath"
	"bpfnet/internal/testkit"
)

func TestSelfTest(t *testing.T) {
	engine, err := datapath.Open(datapath.Options{Root: testkit.Root(t)})
	if err != nil {
		t.Fatal(err)
	}
	steps := SelfTest(context.Background(), engine)
	if len(steps) != 4 {
		t.Fatalf("%d steps", len(steps))
	}
	for i, s := range steps {
		t.Logf("%s %v %+v %+v %.0f ms: %s", s.Mechanism, s.OK, s.Expected, s.Got, s.DurationMS, *s.Detail)
		if !s.OK && !s.Skipped {
			t.Errorf("%s: %s", s.Mechanism, *s.Detail)
		}
		if s.OK && (*s.Expected != *s.Got || s.Got.ReceiveBytes < 2000) {
			t.Errorf("%+v, want %+v", *s.Got, *s.Expected)
		}
		if i == 3 && !s.OK {
			t.Error("sock_diag needs nothing")
		}
	}
}

// wrong is a sampler that counts a byte too many.
type wrong struct{ Sampler }

func (w wrong) Sample(ctx context.Context) (Sample, error) {
	s, err := w.Sampler.Sample(ctx)
	for i := range s.Rows {
		if s.Rows[i].TransmitBytes > 0 {
			s.Rows[i].TransmitBytes++
		}
	}
	return s, err
}

func TestSelfTestOfWrongCounts(t *testing.T) {
	testkit.Root(t)
	steps := selfTest(context.Background(), Polling, func() (Sampler, []string, error) {
		s, notes, err := OpenDiag(Filter{})
		return wrong{s}, notes, err
	})
	s := steps[0]
	if s.OK || s.Skipped || !strings.Contains(*s.Detail, "TCP over IPv") {
		t.Errorf("%+v: %s", s, *s.Detail)
	}
	if s.Got == nil || s.Got.TransmitBytes <= s.Expected.TransmitBytes || s.Got.ReceiveBytes != s.Expected.ReceiveBytes {
		t.Errorf("%+v, want %+v", s.Got, s.Expected)
	}
}
