package endpoint

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"testing"

	"bpfnet/internal/engine"
	"bpfnet/internal/engine/enginetest"
	"bpfnet/internal/testkit"
)

// BenchmarkList lists 200 containers, each with a network namespace, a veth pair, two
// addresses, and a name that CRI has to tell.
func BenchmarkList(b *testing.B) {
	const containers = 200
	host, dir := testkit.NetNS(b), testkit.Cgroup(b)
	testkit.Crowd(b, host, dir, containers)
	server := &enginetest.CRI{Runtime: "containerd"}
	for i := range containers {
		sandbox := fmt.Sprintf("%064x", 1000+i)
		server.Pod(sandbox, "shop", fmt.Sprint("web-", i), uid, 1, map[string]string{"app": "web"})
		server.Container(fmt.Sprintf("%064x", i), sandbox, "nginx")
	}
	kernel := New(host, engine.Sockets{CRI: server.Serve(b), Docker: docker(b, nil)})
	for b.Loop() {
		l, err := kernel.List(context.Background())
		own := slices.DeleteFunc(l.Endpoints, func(e Endpoint) bool { return !within(e.Cgroup.Path, "/"+filepath.Base(dir)) })
		if err != nil || len(own) != containers || len(own[0].Interfaces) != 1 || len(own[0].Interfaces[0].Addresses) != 2 || own[0].Containers[0].Name == nil {
			b.Fatalf("%d containers, %v", len(own), err)
		}
	}
}
