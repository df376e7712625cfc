package engine

import (
	"fmt"
	"testing"

	"bpfnet/internal/engine/enginetest"
)

// BenchmarkAsk asks for 200 Pods of one container.
func BenchmarkAsk(b *testing.B) {
	server := &enginetest.CRI{Runtime: "containerd"}
	for i := range 200 {
		sandbox := fmt.Sprintf("%064x", 1000+i)
		server.Pod(sandbox, "shop", fmt.Sprint("web-", i), "0b6a1c5e-3c1f-4f0a-9d2e-5a7b8c9d0e1f", 1, map[string]string{"app": "web"})
		server.Container(fmt.Sprintf("%064x", i), sandbox, "nginx")
	}
	sockets := Sockets{CRI: server.Serve(b)}
	for b.Loop() {
		if a := Ask(b.Context(), sockets); len(a.Containers) != 400 || len(a.Notes) > 0 {
			b.Fatalf("%d containers, %q", len(a.Containers), a.Notes)
		}
	}
}
