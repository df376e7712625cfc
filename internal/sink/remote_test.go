package sink

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func listen(t *testing.T, network, address string) net.Listener {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// request is what a server got, for golden files.
func (s *server) request(n int, headers ...string) string {
	text := s.paths[n] + "\n"
	for _, name := range headers {
		text += name + ": " + s.heads[n].Get(name) + "\n"
	}
	return text + "\n" + s.bodies[n] + "\n"
}

// TestWebhook checks what is posted, and that a receiver can check who has signed it.
func TestWebhook(t *testing.T) {
	t.Parallel()
	web := serve(t, nil)
	s, _ := open(t, "webhook="+web.URL+"/alerts?team=a,secret-file="+write(t, "secret", "s3cr3t\n"))
	s.Send(hit(t, `"quoted" <b>`+"\u202e\u0000"))
	closed(t, s)
	golden(t, "webhook", web.request(0, "Content-Type", "User-Agent", timestampHeader, signatureHeader))
	mac := hmac.New(sha256.New, []byte("s3cr3t"))
	fmt.Fprintf(mac, "%s.%s", web.heads[0].Get(timestampHeader), web.bodies[0])
	if got := web.heads[0].Get(signatureHeader); got != "sha256="+hex.EncodeToString(mac.Sum(nil)) {
		t.Errorf("signed %q", got)
	}
	if !json.Valid([]byte(web.bodies[0])) {
		t.Error("it isn't JSON")
	}
}

// TestSecretURL checks a URL that isn't on the command line, and isn't told.
func TestSecretURL(t *testing.T) {
	t.Parallel()
	web := serve(t, func(w http.ResponseWriter, _ *http.Request, _ int) { w.WriteHeader(http.StatusNotFound) })
	s, said := open(t, "webhook,url-file="+write(t, "url", web.URL+"/services/hidden\n"))
	s.Send(numbered(t, 1))
	missing := s.Close()
	if len(missing) != 1 || missing[0].Sink != "webhook="+web.URL || web.paths[0] != "POST /services/hidden" {
		t.Errorf("%+v, %v", missing, web.paths)
	}
	if all := said.all(); len(all) != 1 || strings.Contains(all[0], "hidden") {
		t.Errorf("%q", all)
	}
}

// TestAnswers checks what becomes of an alert when a server answers in some way the
// first time, and well the second time.
func TestAnswers(t *testing.T) {
	t.Parallel()
	status := func(code int, header ...string) func(http.ResponseWriter) {
		return func(w http.ResponseWriter) {
			if len(header) > 0 {
				w.Header().Set(header[0], header[1])
			}
			http.Error(w, "said\nmore", code)
		}
	}
	for name, test := range map[string]struct {
		first   func(http.ResponseWriter)
		again   bool          // it is tried again
		soonest time.Duration // not before
		note    string
	}{
		"500":       {status(500), true, firstPause / 2, "it answers 500 Internal Server Error: said"},
		"502":       {status(502), true, firstPause / 2, "it answers 502"},
		"503":       {status(503), true, firstPause / 2, "it answers 503"},
		"503 later": {status(503, "Retry-After", "1"), true, time.Second, "it answers 503"},
		"429":       {status(429), true, firstPause / 2, "it answers 429"},
		"429 later": {status(429, "Retry-After", "2"), true, 2 * time.Second, "it answers 429"},
		"429 at":    {status(429, "Retry-After", now.Add(2*time.Second).Format(http.TimeFormat)), true, 2 * time.Second, "it answers 429"},
		"429 past":  {status(429, "Retry-After", now.Add(-time.Hour).Format(http.TimeFormat)), true, firstPause / 2, "it answers 429"},
		"429 words": {status(429, "Retry-After", "soon"), true, firstPause / 2, "it answers 429"},
		"408":       {status(408), true, firstPause / 2, "it answers 408"},
		"401":       {status(401), true, firstPause / 2, "it answers 401"},
		"403":       {status(403), true, firstPause / 2, "it answers 403"},
		"400":       {status(400), false, 0, "it answers 400 Bad Request: said"},
		"404":       {status(404), false, 0, "it answers 404"},
		"413":       {status(413), false, 0, "it answers 413"},
		"moved":     {status(301, "Location", "http://127.0.0.1:1/"), false, 0, "it answers 301"},
		"closed":    {func(http.ResponseWriter) { panic(http.ErrAbortHandler) }, true, firstPause / 2, "EOF"},
		"cut": {func(w http.ResponseWriter) {
			w.Header().Set("Content-Length", "100")
			w.WriteHeader(200)
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}, true, firstPause / 2, "unexpected EOF"},
		"not HTTP": {func(w http.ResponseWriter) {
			conn, _, err := w.(http.Hijacker).Hijack()
			if err == nil {
				fmt.Fprint(conn, "220 mail.example ESMTP\r\n")
				conn.Close()
			}
		}, true, firstPause / 2, "malformed HTTP"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			web := serve(t, func(w http.ResponseWriter, _ *http.Request, n int) {
				if n == 0 {
					test.first(w)
				}
			})
			s, said := open(t, "webhook="+web.URL)
			s.Send(numbered(t, 1))
			s.Send(numbered(t, 2))
			want := 2
			if test.again {
				want = 3
			}
			eventually(t, "all requests", func() bool { return len(web.got()) == want })
			missing := s.Close()
			if refused := len(missing) == 1 && missing[0].Refused == 1 && missing[0].Sum() == 1; refused == test.again || len(missing) > 1 {
				t.Errorf("not delivered: %+v", missing)
			}
			if waited := web.times[1].Sub(web.times[0]); waited < test.soonest || waited > test.soonest+5*time.Second {
				t.Errorf("it waited %v", waited)
			}
			if again := web.bodies[0] == web.bodies[1]; again != test.again {
				t.Errorf("tried again: %v", again)
			}
			all := said.all()
			if len(all) != 2 || !strings.HasPrefix(all[0], "sink webhook="+web.URL+": ") || !strings.Contains(all[0], test.note) || strings.Contains(all[0], "more") {
				t.Errorf("%q", all)
			}
		})
	}
}

// TestRetryAfterIsBounded checks that no server can stop a sink for good.
func TestRetryAfterIsBounded(t *testing.T) {
	r := &remote{now: func() time.Time { return now }}
	for text, want := range map[string]time.Duration{
		"": 0, "7": 7 * time.Second, "-7": 0, "1.5": 0, "99999999999999999999": 0, "2000000000": 2000000000 * time.Second,
		"Fri, 02 Jan 2026 03:05:30 GMT": time.Minute,
	} {
		if got := r.retryAfter(http.Header{"Retry-After": {text}}); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
}

// TestWhoAsks checks what requests say who asks, and that a secret that changed is
// used without a new start.
func TestWhoAsks(t *testing.T) {
	token := write(t, "token", "old")
	t.Setenv("SINK_PASSWORD", "pass:word")
	for spec, want := range map[string]string{
		",user=me,password-env=SINK_PASSWORD": "Basic bWU6cGFzczp3b3Jk",
		",token-file=" + token:                "Bearer new",
	} {
		web := serve(t, func(w http.ResponseWriter, r *http.Request, _ int) {
			if got := r.Header.Get("Authorization"); got != want {
				if err := os.WriteFile(token, []byte("new\n"), 0o600); err != nil {
					t.Error(err)
				}
				w.WriteHeader(http.StatusUnauthorized)
			}
		})
		s, _ := open(t, "alertmanager="+web.URL+spec)
		s.Send(numbered(t, 1))
		closed(t, s)
	}
}

// TestTLS checks that a server is trusted whose certificate is in the file.
func TestTLS(t *testing.T) {
	t.Parallel()
	web := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer web.Close()
	ca := write(t, "ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: web.Certificate().Raw})))
	s, said := open(t, "webhook="+web.URL+",ca-file="+ca)
	s.Send(numbered(t, 1))
	closed(t, s)
	if said.all() != nil {
		t.Error(said.all())
	}
}

// TestAlertmanager checks what is posted when alerts begin, when they are over, and in
// between.
func TestAlertmanager(t *testing.T) {
	t.Parallel()
	web := serve(t, nil)
	s, _ := open(t, "alertmanager="+web.URL+"/prefix/")
	send := func(events ...Event) {
		t.Helper()
		for _, e := range events {
			before := len(web.got())
			s.Send(e)
			eventually(t, "a request", func() bool { return len(web.got()) == before+1 })
		}
	}
	d := s.outlets[0].driver.(*alertmanager)
	send(hit(t, "a reason"), burst(t, false, "")) // whose Pod isn't known yet
	if r := d.repeat(t.Context()); r.err != nil {
		t.Error(r.err)
	}
	send(burst(t, true, "web"))
	if r := d.repeat(t.Context()); r.err != nil {
		t.Error(r.err)
	}
	send(burst(t, false, "web"))
	closed(t, s)
	var all strings.Builder
	for n := range web.got() {
		all.WriteString(web.request(n, "Content-Type"))
	}
	golden(t, "alertmanager", all.String())
	if len(web.bodies) != 5 || web.bodies[1] != web.bodies[2] {
		t.Fatalf("what is on isn't told again:\n%s", all.String())
	}
	var began, over []postable
	for body, to := range map[string]*[]postable{web.bodies[2]: &began, web.bodies[3]: &over} {
		if err := json.Unmarshal([]byte(body), to); err != nil {
			t.Fatal(err)
		}
	}
	if !maps.Equal(began[0].Labels, over[0].Labels) {
		t.Errorf("%v is over, %v began", over[0].Labels, began[0].Labels)
	}
	if !began[0].EndsAt.Equal(now.Add(trustTime)) || !over[0].EndsAt.Equal(now.Add(-5*time.Second)) {
		t.Errorf("%v, %v", began[0].EndsAt, over[0].EndsAt)
	}
}

// TestAlertmanagerLabels checks that no label has a remote address: each would be a
// series of its own.
func TestAlertmanagerLabels(t *testing.T) {
	for name, e := range map[string]Event{"BpfnetFanout": fanout(t), "BpfnetScan": scan(t)} {
		labels := labelsOf(e, "node-1")
		if text := fmt.Sprint(labels); labels["alertname"] != name || strings.Contains(text, "198.51.100.7") || len(labels) != 5 {
			t.Errorf("%s: %s", name, text)
		}
	}
}

// TestAlertmanagerWithoutRoom checks that what is over isn't told as on because the
// queue had no room for its end, and what began is told although it had none.
func TestAlertmanagerWithoutRoom(t *testing.T) {
	t.Parallel()
	d := &alertmanager{remote: &remote{now: func() time.Time { return now }}, on: map[string]Event{}}
	o := &outlet{driver: d, queue: make(chan Event)} // that nobody reads
	o.send(burst(t, false, "web"))
	if len(d.on) != 1 || o.undelivered().Dropped != 1 {
		t.Errorf("%d are on", len(d.on))
	}
	o.send(burst(t, true, "web"))
	if len(d.on) != 0 || o.undelivered().Dropped != 2 {
		t.Errorf("%d are on", len(d.on))
	}
}

// TestAlertmanagerAtOnce checks that alerts which have waited go in one request.
func TestAlertmanagerAtOnce(t *testing.T) {
	t.Parallel()
	begin := make(chan struct{})
	web := serve(t, func(_ http.ResponseWriter, _ *http.Request, n int) {
		if n == 0 {
			<-begin
		}
	})
	s, _ := open(t, "alertmanager="+web.URL)
	for n := range 250 {
		s.Send(numbered(t, n))
	}
	eventually(t, "a request", func() bool { return len(web.got()) == 1 })
	close(begin)
	closed(t, s)
	sum, sizes := 0, []int{}
	for _, body := range web.got() {
		var some []postable
		if err := json.Unmarshal([]byte(body), &some); err != nil {
			t.Fatal(err)
		}
		sum, sizes = sum+len(some), append(sizes, len(some))
	}
	if sum != 250 || len(sizes) > 5 || slices.Max(sizes) > 100 {
		t.Errorf("%v", sizes)
	}
}

func TestAlertName(t *testing.T) {
	for rule, want := range map[string]string{"burst": "BpfnetBurst", "fan-out": "BpfnetFanOut", "port_scan": "BpfnetPortScan"} {
		if got := alertName(rule); got != want {
			t.Errorf("%s: %s", rule, got)
		}
	}
}
