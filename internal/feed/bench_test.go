package feed

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
)

// BenchmarkRead reads a million lines, and as many rows of other formats.
func BenchmarkRead(b *testing.B) {
	const rows = 1_000_000
	for _, c := range []struct {
		name string
		row  func(b *bytes.Buffer, address string, n int)
	}{
		{"lines", func(b *bytes.Buffer, address string, n int) {
			if b.WriteString(address); n%2 == 0 {
				fmt.Fprintf(b, "/%d", 8+n%25)
			}
		}},
		{"comments", func(b *bytes.Buffer, address string, n int) { fmt.Fprintf(b, "%s/24 ; SBL%d", address, n) }},
		{"domains", func(b *bytes.Buffer, _ string, n int) { fmt.Fprintf(b, "host%d.evil.example", n) }},
		{"v6", func(b *bytes.Buffer, _ string, n int) { fmt.Fprintf(b, "2001:db8:%x::/48", n%65536) }},
		{"hosts", func(b *bytes.Buffer, _ string, n int) { fmt.Fprintf(b, "0.0.0.0 host%d.evil.example", n) }},
		{"ipset", func(b *bytes.Buffer, address string, _ int) { fmt.Fprintf(b, "add bad %s timeout 300", address) }},
		{"csv", func(b *bytes.Buffer, address string, n int) { fmt.Fprintf(b, `"%d","%s","x"`, n, address) }},
		{"ndjson", func(b *bytes.Buffer, address string, n int) {
			fmt.Fprintf(b, `{"cidr":"%s/24","sblid":"SBL%d","rir":"apnic"}`, address, n)
		}},
		{"garbage", func(b *bytes.Buffer, address string, _ int) { fmt.Fprintf(b, "9%s what is this", address) }},
	} {
		random := rand.New(rand.NewPCG(1, 2))
		var text bytes.Buffer
		for n := range rows {
			c.row(&text, fmt.Sprintf("%d.%d.%d.%d", 1+random.IntN(223), random.IntN(256), random.IntN(256), random.IntN(256)), n)
			text.WriteByte('\n')
		}
		b.Run(c.name, func(b *testing.B) {
			b.SetBytes(int64(text.Len()))
			for b.Loop() {
				told := 0
				err := Read(bytes.NewReader(text.Bytes()), Options{}, func(Entry) error { told++; return nil }, func(LineError) { told++ })
				if err != nil || told != rows {
					b.Fatal(told, err)
				}
			}
			b.ReportAllocs()
		})
	}
}
