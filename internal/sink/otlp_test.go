package sink

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/slim/otlp/collector/logs/v1"
	rpc "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// exported is what a request has, as a collector reads it.
func exported(t *testing.T, body string) *collector.ExportLogsServiceRequest {
	t.Helper()
	var r collector.ExportLogsServiceRequest
	if err := proto.Unmarshal([]byte(unzipped(t, body)), &r); err != nil {
		t.Fatal(err)
	}
	return &r
}

// records are the texts that tell hits of a request apart.
func records(t *testing.T, body string) (texts []string) {
	t.Helper()
	for _, r := range exported(t, body).ResourceLogs[0].ScopeLogs[0].LogRecords {
		text := r.Body.GetStringValue()
		texts = append(texts, text[strings.LastIndex(text, ": ")+2:])
	}
	return texts
}

// answer answers with a message.
func answer(w http.ResponseWriter, status int, message proto.Message) {
	body, _ := proto.Marshal(message)
	w.Header().Set("Content-Type", "application/x-protobuf")
	w.WriteHeader(status)
	_, _ = w.Write(body)
}

// part is an answer that alerts were refused, or a warning.
func part(refused int64, message string) proto.Message {
	return &collector.ExportLogsServiceResponse{PartialSuccess: &collector.ExportLogsPartialSuccess{RejectedLogRecords: refused, ErrorMessage: message}}
}

// TestOTLP checks what is posted.
func TestOTLP(t *testing.T) {
	t.Parallel()
	web := serve(t, func(w http.ResponseWriter, _ *http.Request, _ int) {
		answer(w, 200, &collector.ExportLogsServiceResponse{})
	})
	s, said := open(t, "otlp="+web.URL+"/prefix/?tenant=a,token-file="+write(t, "token", "s3cr3t\n"))
	for n, e := range []Event{hit(t, "a reason\xff"), burst(t, false, "web"), burst(t, true, "web")} {
		s.Send(e)
		eventually(t, "a request", func() bool { return len(web.got()) == n+1 })
	}
	closed(t, s)
	var all strings.Builder
	for n := range web.bodies {
		text, err := protojson.Marshal(exported(t, web.bodies[n]))
		var value any // in an order and with spaces that stay
		if err == nil {
			err = json.Unmarshal(text, &value)
		}
		if err == nil {
			text, err = json.Marshal(value)
		}
		if err != nil {
			t.Fatal(err)
		}
		web.bodies[n] = string(text)
		all.WriteString(web.request(n, "Content-Type", "Content-Encoding", "Authorization"))
	}
	golden(t, "otlp", all.String())
	if said.all() != nil {
		t.Error(said.all())
	}
}

// TestOTLPInPart checks that alerts which are refused are counted and not sent again,
// that a warning is told once, and what isn't an answer makes them be sent again.
func TestOTLPInPart(t *testing.T) {
	t.Parallel()
	begin := make(chan struct{})
	web := serve(t, func(w http.ResponseWriter, _ *http.Request, n int) {
		switch n {
		case 0:
			<-begin
			answer(w, 200, part(0, "use another\nport"))
		case 1:
			fmt.Fprint(w, "<html>a proxy</html>")
		case 2:
			answer(w, 200, part(2, "too long\nmore"))
		default:
			answer(w, 200, part(0, "use another\nport"))
		}
	})
	s, said := open(t, "otlp="+web.URL)
	for n := range 4 {
		s.Send(numbered(t, n))
		eventually(t, "a request", func() bool { return len(web.got()) >= 1 })
	}
	close(begin)
	eventually(t, "three requests", func() bool { return len(web.got()) == 3 })
	s.Send(numbered(t, 4))
	missing := s.Close()
	if len(missing) != 1 || missing[0].Refused != 2 || missing[0].Sum() != 2 {
		t.Errorf("not delivered: %+v", missing)
	}
	for n, want := range [][]string{{"number 0000"}, {"number 0001", "number 0002", "number 0003"}, {"number 0001", "number 0002", "number 0003"}, {"number 0004"}} {
		if texts := records(t, web.bodies[n]); !slices.Equal(texts, want) {
			t.Errorf("%d: %v", n, texts)
		}
	}
	name := "sink otlp=" + web.URL
	want := []string{
		name + " takes alerts, and warns: use another", name + ": it doesn't answer as OTLP does: <html>a proxy</html>",
		name + " takes alerts again; not delivered meanwhile: 2",
	}
	if all := said.all(); !slices.Equal(all, want) {
		t.Errorf("%q", all)
	}
}

// TestOTLPAnswers checks which answers make alerts be sent again, and what is told.
func TestOTLPAnswers(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		status int
		again  bool
	}{{429, true}, {502, true}, {503, true}, {504, true}, {400, false}, {401, false}, {404, false}, {413, false}, {500, false}, {501, false}} {
		t.Run(fmt.Sprint(test.status), func(t *testing.T) {
			t.Parallel()
			web := serve(t, func(w http.ResponseWriter, _ *http.Request, n int) {
				if n == 0 {
					w.Header().Set("Retry-After", "1")
					answer(w, test.status, &rpc.Status{Code: 3, Message: "said\nmore"})
				}
			})
			s, said := open(t, "otlp="+web.URL)
			s.Send(numbered(t, 1))
			eventually(t, "an answer", func() bool { return len(said.all()) == 1 })
			if test.again {
				eventually(t, "another request", func() bool { return len(web.got()) == 2 })
				if waited := web.times[1].Sub(web.times[0]); waited < time.Second {
					t.Errorf("it waited %v", waited)
				}
			}
			missing := s.Close()
			if refused := len(missing) == 1 && missing[0].Refused == 1; refused == test.again {
				t.Errorf("not delivered: %+v", missing)
			}
			if note := said.all()[0]; note != fmt.Sprintf("sink otlp=%s: it answers %d %s: said", web.URL, test.status, http.StatusText(test.status)) {
				t.Error(note)
			}
		})
	}
}

// TestOTLPAtOnce checks that alerts which have waited go in one request.
func TestOTLPAtOnce(t *testing.T) {
	t.Parallel()
	begin := make(chan struct{})
	web := serve(t, func(_ http.ResponseWriter, _ *http.Request, n int) {
		if n == 0 {
			<-begin
		}
	})
	s, _ := open(t, "otlp="+web.URL)
	for n := range 450 {
		s.Send(numbered(t, n))
	}
	close(begin)
	closed(t, s)
	var all []string
	for _, body := range web.got() {
		texts := records(t, body)
		if all = append(all, texts...); len(texts) > 200 {
			t.Errorf("%d at once", len(texts))
		}
	}
	if len(all) != 450 || !slices.IsSorted(all) || len(web.bodies) > 5 {
		t.Errorf("%d in %d requests", len(all), len(web.bodies))
	}
}
