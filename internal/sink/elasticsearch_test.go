package sink

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// unzipped is the body of a request.
func unzipped(t *testing.T, body string) string {
	t.Helper()
	r, err := gzip.NewReader(strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// ids are the documents in a request, and the texts that tell hits apart.
func ids(t *testing.T, body string) (ids, texts []string) {
	t.Helper()
	for i, line := range strings.Split(strings.TrimSpace(unzipped(t, body)), "\n") {
		var one struct {
			Create struct {
				ID string `json:"_id"`
			}
			Message string
		}
		if err := json.Unmarshal([]byte(line), &one); err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 {
			ids = append(ids, one.Create.ID)
		} else {
			texts = append(texts, one.Message[strings.LastIndex(one.Message, ": ")+2:])
		}
	}
	return ids, texts
}

// bulk answers as Elasticsearch does, with a status for each document.
func bulk(w http.ResponseWriter, statuses ...int) {
	items := []string{}
	for _, status := range statuses {
		failure := ""
		if status >= 300 {
			failure = `,"error":{"type":"an_exception","reason":"said\nmore"}`
		}
		items = append(items, fmt.Sprintf(`{"create":{"status":%d%s}}`, status, failure))
	}
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(w, `{"errors":%v,"items":[%s]}`, slices.Max(statuses) >= 300, strings.Join(items, ","))
}

// TestElasticsearch checks what is posted.
func TestElasticsearch(t *testing.T) {
	t.Parallel()
	web := serve(t, func(w http.ResponseWriter, _ *http.Request, _ int) { bulk(w, 201) })
	s, said := open(t, "elasticsearch="+web.URL+"/bpfnet?pipeline=a,api-key-file="+write(t, "key", "a2V5\n"))
	for n, e := range []Event{hit(t, "a reason"), burst(t, false, "web"), burst(t, true, "web"), fanout(t), scan(t)} {
		s.Send(e)
		eventually(t, "a request", func() bool { return len(web.got()) == n+1 })
	}
	closed(t, s)
	var all bytes.Buffer
	for n := range web.bodies {
		web.bodies[n] = unzipped(t, web.bodies[n])
		all.WriteString(web.request(n, "Content-Type", "Content-Encoding", "Authorization"))
	}
	golden(t, "elasticsearch", all.String())
	if said.all() != nil {
		t.Error(said.all())
	}
}

// TestBulkInPart checks that of many documents those are sent again that may be taken
// later, and no others.
func TestBulkInPart(t *testing.T) {
	t.Parallel()
	begin := make(chan struct{})
	web := serve(t, func(w http.ResponseWriter, _ *http.Request, n int) {
		switch n {
		case 0:
			<-begin
			bulk(w, 201)
		case 1:
			bulk(w, 201, 429, 400, 409, 503)
		case 2:
			w.Header().Set("Retry-After", "1")
			http.Error(w, "{}", http.StatusTooManyRequests)
		case 3:
			fmt.Fprint(w, "<html>a proxy</html>")
		case 4:
			bulk(w, 201) // fewer than there are
		default:
			bulk(w, 201, 201)
		}
	})
	s, said := open(t, "elasticsearch="+web.URL+"/bpfnet")
	for n := range 6 {
		if n > 0 {
			eventually(t, "a request", func() bool { return len(web.got()) >= 1 })
		}
		s.Send(numbered(t, n))
	}
	close(begin)
	eventually(t, "all requests", func() bool { return len(web.got()) == 6 })
	missing := s.Close()
	if len(missing) != 1 || missing[0].Refused != 1 || missing[0].Sum() != 1 {
		t.Errorf("not delivered: %+v", missing)
	}
	want := []string{"number 0001", "number 0005"} // were told 201 and 503
	_, texts := ids(t, web.bodies[1])
	if !slices.Equal(texts, []string{"number 0001", "number 0002", "number 0003", "number 0004", "number 0005"}) {
		t.Errorf("first %v", texts)
	}
	want[0] = "number 0002"
	for n := 2; n < 6; n++ {
		if _, texts := ids(t, web.bodies[n]); !slices.Equal(texts, want) {
			t.Errorf("%d: %v", n, texts)
		}
	}
	if waited := web.times[3].Sub(web.times[2]); waited < time.Second {
		t.Errorf("it waited %v", waited)
	}
	all := said.all()
	if len(all) != 2 || all[0] != "sink elasticsearch="+web.URL+": it answers 429 for an alert: an_exception: said" || !strings.HasSuffix(all[1], "takes alerts again; not delivered meanwhile: 1") {
		t.Errorf("%q", all)
	}
}

// TestBulkIDs checks that a document that is sent again is the same one, and which
// others aren't.
func TestBulkIDs(t *testing.T) {
	d := &elasticsearch{host: "node-1"}
	later := burst(t, false, "web")
	later.Alert.StartedAt = later.Alert.StartedAt.Add(time.Nanosecond)
	seen := map[string]bool{}
	for _, e := range []Event{burst(t, false, "web"), burst(t, true, "web"), later, hit(t, "a")} {
		seen[d.id(e)] = true
	}
	seen[(&elasticsearch{host: "node-2"}).id(later)] = true
	if len(seen) != 5 || d.id(hit(t, "a")) != d.id(hit(t, "b")) {
		t.Errorf("%v", seen)
	}
}
