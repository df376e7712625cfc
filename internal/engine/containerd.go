package engine

import (
	"cmp"
	"context"
	"encoding/json"
	"strings"

	containers "github.com/containerd/containerd/api/services/containers/v1"
	namespaces "github.com/containerd/containerd/api/services/namespaces/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// notItsOwn are containerd's namespaces of others, who know names for what is in
// them: CRI and Docker.
var notItsOwn = map[string]bool{"k8s.io": true, "moby": true}

// listContainerd lists the containers in containerd's own namespaces.
func listContainerd(ctx context.Context, conn *grpc.ClientConn) ([]Container, error) {
	list, err := namespaces.NewNamespacesClient(conn).List(ctx, &namespaces.ListNamespacesRequest{})
	if err != nil {
		return nil, err
	}
	client := containers.NewContainersClient(conn)
	var found []Container
	for _, namespace := range list.Namespaces {
		if notItsOwn[namespace.Name] {
			continue
		}
		in := metadata.AppendToOutgoingContext(ctx, "containerd-namespace", namespace.Name)
		list, err := client.List(in, &containers.ListContainersRequest{})
		if err != nil {
			return nil, err
		}
		for _, c := range list.Containers {
			found = append(found, newContainer(c))
		}
	}
	return found, nil
}

// newContainer reads a container of containerd. Its name is nerdctl's, or its id
// where a person gave that.
func newContainer(container *containers.Container) Container {
	c := Container{ID: container.ID, Engine: string(Containerd), Source: Containerd, Labels: orEmpty(container.Labels)}
	c.Name = c.Labels["nerdctl/name"]
	if !isID(c.ID) {
		c.Name = cmp.Or(c.Name, c.ID)
		c.Cgroup = cgroupOf(container)
	}
	return c
}

// cgroupOf reads the path of the cgroup in a container's specification, which is JSON;
// "" for one that isn't a path, but a unit of systemd.
func cgroupOf(container *containers.Container) string {
	var spec struct {
		Linux struct {
			CgroupsPath string `json:"cgroupsPath"`
		} `json:"linux"`
	}
	if json.Unmarshal(container.Spec.GetValue(), &spec) != nil || !strings.HasPrefix(spec.Linux.CgroupsPath, "/") {
		return ""
	}
	return spec.Linux.CgroupsPath
}

// isID says whether an id is one that engines make, and cgroups have in their names:
// 64 hexadecimal digits.
func isID(id string) bool { return len(id) == 64 && strings.Trim(id, "0123456789abcdef") == "" }
