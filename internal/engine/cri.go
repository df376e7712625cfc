package engine

import (
	"cmp"
	"context"
	"errors"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var errNotGRPC = errors.New("it doesn't speak gRPC, or ends the connection")

// askCRI asks the socket of a CRI server, which may be containerd's: with CRI, with
// namespaces of its own, or both.
func askCRI(ctx context.Context, path string) ([]Container, error) {
	socket, err := dial(ctx, path)
	if err != nil {
		return nil, err
	}
	conn, err := newClient(socket)
	if err != nil {
		_ = socket.Close()
		return nil, err
	}
	defer conn.Close()
	defer socket.Close() // first, as grpc waits for a server that reads nothing
	found, err := listCRI(ctx, conn)
	own, ownErr := listContainerd(ctx, conn)
	switch codes.Unimplemented {
	case status.Code(ownErr):
		ownErr = nil
	case status.Code(err):
		err = nil
	}
	err = cmp.Or(err, ownErr)
	if status.Code(err) == codes.Unavailable && conn.GetState() != connectivity.Ready {
		err = errNotGRPC // grpc says it at length
	}
	return append(found, own...), err
}

// listCRI lists the Pods and containers that CRI knows.
func listCRI(ctx context.Context, conn *grpc.ClientConn) ([]Container, error) {
	client := cri.NewRuntimeServiceClient(conn)
	version, err := client.Version(ctx, &cri.VersionRequest{})
	if err != nil {
		return nil, err
	}
	engine := strings.ToLower(version.RuntimeName)
	if engine == "cri-o" {
		engine = "crio"
	}
	sandboxes, err := client.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		return nil, err
	}
	var found []Container
	pods := map[string]*Pod{}
	for _, s := range sandboxes.Items {
		pods[s.Id] = newPod(s)
		found = append(found, Container{ID: s.Id, Engine: engine, Source: CRI, Labels: map[string]string{}, Pod: pods[s.Id]})
	}
	list, err := client.ListContainers(ctx, &cri.ListContainersRequest{})
	for _, c := range list.GetContainers() {
		found = append(found, Container{
			ID: c.Id, Engine: engine, Source: CRI, Name: c.Metadata.GetName(), Labels: orEmpty(c.Labels), Pod: pods[c.PodSandboxId],
		})
	}
	return found, err
}

// newPod reads a Pod of CRI. Its labels are those that its user gave it: the kubelet
// adds namespace, name and uid.
func newPod(s *cri.PodSandbox) *Pod {
	labels := orEmpty(s.Labels)
	for label := range labels {
		if strings.HasPrefix(label, "io.kubernetes.pod.") {
			delete(labels, label)
		}
	}
	return &Pod{
		Sandbox: s.Id, Name: s.Metadata.GetName(), UID: s.Metadata.GetUid(), Namespace: s.Metadata.GetNamespace(),
		Labels: labels, Ready: s.State == cri.PodSandboxState_SANDBOX_READY, Created: s.CreatedAt,
	}
}
