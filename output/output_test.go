package output

import (
	"bytes"
	"testing"
)

type doc struct {
	Schema string   `json:"schema"`
	N      int      `json:"n"`
	List   []string `json:"list"`
}

func TestFormats(t *testing.T) {
	docs := []doc{{"a/v1", 1, []string{"x", "yes"}}, {"a/v1", 2, nil}}
	for _, f := range Formats() {
		var b bytes.Buffer
		p := New(&b, Format(f))
		tb := func() Table {
			return Table{Header: []string{"name", "n", "x"}, Rows: [][]string{{"a", "1.2 kB", ""}, {"b\x1b[31m", "12 MB", "q"}}}
		}
		p.Object(docs[0], tb)
		p.List(docs, tb)
		p.List([]doc(nil), tb)
		p.Event(docs[0], tb)
		p.Event(docs[1], tb)
		t.Log("\n" + b.String())
	}
}
