package engine

import (
	"cmp"
	"context"
	"encoding/json"
	"strings"
)

// notItsOwn are containerd's namespaces of others, who know names for what is in
// them: CRI and Docker.
var notItsOwn = map[string]bool{"k8s.io": true, "moby": true}

// containerd lists the containers in containerd's own namespaces.
func (c caller) containerd(ctx context.Context) ([]Container, error) {
	namespaces, err := c.list(ctx, "containerd.services.namespaces.v1.Namespaces/List", "")
	if err != nil {
		return nil, err
	}
	var found []Container
	for _, namespace := range namespaces {
		name := namespace.text(1)
		if notItsOwn[name] {
			continue
		}
		containers, err := c.list(ctx, "containerd.services.containers.v1.Containers/List", name)
		if err != nil {
			return nil, err
		}
		for _, container := range containers {
			one, err := newContainer(container)
			if err != nil {
				return nil, err
			}
			found = append(found, one)
		}
	}
	return found, nil
}

// newContainer reads a container of containerd. Its name is nerdctl's, or its id
// where a person gave that.
func newContainer(container fields) (Container, error) {
	labels, err := container.texts(2)
	if err != nil {
		return Container{}, err
	}
	c := Container{ID: container.text(1), Engine: string(Containerd), Source: Containerd, Name: labels["nerdctl/name"], Labels: labels}
	if !isID(c.ID) {
		c.Name = cmp.Or(c.Name, c.ID)
		c.Cgroup, err = cgroupOf(container)
	}
	return c, err
}

// cgroupOf reads the path of the cgroup in a container's specification, which is JSON;
// "" for one that isn't a path, but a unit of systemd.
func cgroupOf(container fields) (string, error) {
	packed, err := container.message(5)
	if err != nil {
		return "", err
	}
	var spec struct {
		Linux struct {
			CgroupsPath string `json:"cgroupsPath"`
		} `json:"linux"`
	}
	if json.Unmarshal(packed.last(2).bytes, &spec) != nil || !strings.HasPrefix(spec.Linux.CgroupsPath, "/") {
		return "", nil
	}
	return spec.Linux.CgroupsPath, nil
}

// isID says whether an id is one that engines make, and cgroups have in their names:
// 64 hexadecimal digits.
func isID(id string) bool { return len(id) == 64 && strings.Trim(id, "0123456789abcdef") == "" }
