package baseline

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestDiff(t *testing.T) {
	a, err := Read([]byte(example), "a")
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ old, new, want string }{
		{"", "", ""},
		{"container:db", "container:cache", "container:cache endpoint added, container:db endpoint removed"},
		{`"192.0.2.1", `, `"192.0.2.2", "2001:db8::/32", `, "workload:shop/web peer removed 192.0.2.1, workload:shop/web peer added 192.0.2.2, workload:shop/web peer added 2001:db8::/32"},
		{`"10.0.0.0/8"]`, `"10.0.0.0/8", "10.1.0.0/16"]`, ""}, // has it already
		{`["443/tcp", "udp"]`, `["443/tcp"]`, "workload:shop/web port removed udp"},
		{`["443/tcp", "udp"]`, `null`, ""},
		{`"median": 1,`, `"median": 8000,`, ""},
		{`"median": 1,`, `"median": 9000,`, "workload:shop/web volume more tue 08 transmit_bytes 6.1"},
		{`"windows": 60, "transmit_bytes": {"median": 1,`, `"windows": 29, "transmit_bytes": {"median": 9000,`, ""},
	} {
		b, err := Read([]byte(strings.Replace(example, test.old, test.new, 1)), "b")
		if err != nil {
			t.Fatal(err)
		}
		if got := told(t, Diff(a, b, DefaultScore)); got != test.want {
			t.Errorf("%s: got %s\nwant %s", test.new, got, test.want)
		}
		back := strings.NewReplacer("added", "removed", "removed", "added", "more", "less").Replace(test.want)
		if got := Diff(b, a, DefaultScore); len(got) != len(Diff(a, b, DefaultScore)) || len(got) == 1 && !strings.HasPrefix(back, strings.TrimSuffix(told(t, got[:1]), " -6.1")) && len(strings.Fields(back)) < 6 {
			t.Errorf("%s: back %s, want %s", test.new, told(t, got), back)
		}
	}
}

func told(t *testing.T, all []Difference) string {
	t.Helper()
	var texts []string
	for _, d := range all {
		words := []string{d.Endpoint, d.Kind, d.Change}
		for _, w := range []*string{d.Item, d.Hour, d.Metric} {
			if w != nil {
				words = append(words, *w)
			}
		}
		if d.Score != nil {
			score, err := json.Marshal(d.Score)
			if err != nil {
				t.Fatal(err)
			}
			words = append(words, string(score))
		}
		texts = append(texts, strings.Join(words, " "))
	}
	return strings.Join(texts, ", ")
}
