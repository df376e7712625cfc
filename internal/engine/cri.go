package engine

import (
	"cmp"
	"context"
	"errors"
	"strings"
)

const criService = "runtime.v1.RuntimeService/"

// askCRI asks the socket of a CRI server, which may be containerd's: with CRI, with
// namespaces of its own, or both.
func askCRI(ctx context.Context, path string) ([]Container, error) {
	c, err := connect(ctx, path)
	if err != nil {
		return nil, err
	}
	defer c.close()
	found, err := c.cri(ctx)
	own, ownErr := c.containerd(ctx)
	switch {
	case errors.Is(ownErr, errUnimplemented):
		ownErr = nil
	case errors.Is(err, errUnimplemented):
		err = nil
	}
	return append(found, own...), cmp.Or(err, ownErr)
}

// cri lists the Pods and containers that CRI knows.
func (c *caller) cri(ctx context.Context) ([]Container, error) {
	version, err := c.call(ctx, criService+"Version", "")
	if err != nil {
		return nil, err
	}
	runtime := strings.ToLower(version.text(2))
	if runtime == "cri-o" {
		runtime = "crio"
	}
	pods, err := c.sandboxes(ctx)
	if err != nil {
		return nil, err
	}
	var found []Container
	for id, pod := range pods {
		found = append(found, Container{ID: id, Engine: runtime, Source: CRI, Labels: map[string]string{}, Pod: pod, Sandbox: true})
	}
	list, err := c.list(ctx, criService+"ListContainers", "")
	if err != nil {
		return found, err
	}
	for _, container := range list {
		metadata, err := container.message(3)
		if err != nil {
			return found, err
		}
		labels, err := container.texts(8)
		if err != nil {
			return found, err
		}
		found = append(found, Container{
			ID: container.text(1), Engine: runtime, Source: CRI, Name: metadata.text(1), Labels: labels, Pod: pods[container.text(2)],
		})
	}
	return found, nil
}

// sandboxes lists the Pods by the id of their sandbox.
func (c *caller) sandboxes(ctx context.Context) (map[string]*Pod, error) {
	list, err := c.list(ctx, criService+"ListPodSandbox", "")
	if err != nil {
		return nil, err
	}
	found := map[string]*Pod{}
	for _, sandbox := range list {
		metadata, err := sandbox.message(2)
		if err != nil {
			return nil, err
		}
		labels, err := sandbox.texts(5)
		if err != nil {
			return nil, err
		}
		id := sandbox.text(1)
		found[id] = &Pod{
			Sandbox: id, Name: metadata.text(1), UID: metadata.text(2), Namespace: metadata.text(3),
			Labels: podLabels(labels), Ready: sandbox.number(3) == 0, Created: int64(sandbox.number(4)),
		}
	}
	return found, nil
}

// podLabels are the labels of a Pod as its user gave them: the kubelet adds namespace,
// name and uid.
func podLabels(labels map[string]string) map[string]string {
	for label := range labels {
		if strings.HasPrefix(label, "io.kubernetes.pod.") {
			delete(labels, label)
		}
	}
	return labels
}
