// Package enginetest has servers that answer as container engines do.
package enginetest

import (
	"context"
	"net"
	"net/http"
	"path/filepath"
	"testing"

	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Listen listens on a socket in a directory of its own, until the test ends.
func Listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "socket"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// CRI is a server of CRI, and of nothing else.
type CRI struct {
	cri.UnimplementedRuntimeServiceServer
	Runtime    string // "containerd"
	Pods       []*cri.PodSandbox
	Containers []*cri.Container
}

// Serve serves until the test ends, and returns the path of the socket.
func (c *CRI) Serve(t testing.TB) string {
	t.Helper()
	server := grpc.NewServer()
	cri.RegisterRuntimeServiceServer(server, c)
	return ServeGRPC(t, server)
}

// ServeGRPC serves until the test ends, and returns the path of the socket.
func ServeGRPC(t testing.TB, server *grpc.Server) string {
	t.Helper()
	l := Listen(t)
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)
	return l.Addr().String()
}

// Version implements the service.
func (c *CRI) Version(context.Context, *cri.VersionRequest) (*cri.VersionResponse, error) {
	return &cri.VersionResponse{Version: "0.1.0", RuntimeName: c.Runtime, RuntimeVersion: "1", RuntimeApiVersion: "v1"}, nil
}

// ListPodSandbox implements the service.
func (c *CRI) ListPodSandbox(context.Context, *cri.ListPodSandboxRequest) (*cri.ListPodSandboxResponse, error) {
	return &cri.ListPodSandboxResponse{Items: c.Pods}, nil
}

// ListContainers implements the service.
func (c *CRI) ListContainers(context.Context, *cri.ListContainersRequest) (*cri.ListContainersResponse, error) {
	return &cri.ListContainersResponse{Containers: c.Containers}, nil
}

// Pod adds a Pod that is ready, and was made at a time.
func (c *CRI) Pod(sandbox, namespace, name, uid string, created int64, labels map[string]string) *cri.PodSandbox {
	p := &cri.PodSandbox{
		Id: sandbox, Metadata: &cri.PodSandboxMetadata{Name: name, Namespace: namespace, Uid: uid}, CreatedAt: created, Labels: labels,
	}
	c.Pods = append(c.Pods, p)
	return p
}

// Container adds a container to a Pod.
func (c *CRI) Container(id, sandbox, name string) {
	c.Containers = append(c.Containers, &cri.Container{
		Id: id, PodSandboxId: sandbox, Metadata: &cri.ContainerMetadata{Name: name}, State: cri.ContainerState_CONTAINER_RUNNING,
		Labels: map[string]string{"io.kubernetes.container.name": name},
	})
}

// HTTP serves Docker's API until the test ends, and returns the path of the socket.
func HTTP(t testing.TB, handler http.HandlerFunc) string {
	t.Helper()
	l := Listen(t)
	server := &http.Server{Handler: handler}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close() })
	return l.Addr().String()
}
