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
	client, err := connect(ctx, path)
	if err != nil {
		return nil, err
	}
	defer client.close()
	c := newCaller(client)
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
func (c caller) cri(ctx context.Context) ([]Container, error) {
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
	list, err := c.list(ctx, criService+"ListContainers", "")
	if err != nil {
		return nil, err
	}
	var found []Container
	for id, pod := range pods {
		found = append(found, Container{ID: id, Engine: runtime, Source: CRI, Labels: map[string]string{}, Pod: pod})
	}
	for _, container := range list {
		one, sandbox, err := newCRIContainer(container)
		if err != nil {
			return found, err
		}
		one.Engine, one.Pod = runtime, pods[sandbox]
		found = append(found, one)
	}
	return found, nil
}

// newCRIContainer reads a container of CRI, and the id of its sandbox.
func newCRIContainer(container fields) (c Container, sandbox string, err error) {
	metadata, err := container.message(3)
	if err != nil {
		return c, "", err
	}
	labels, err := container.texts(8)
	return Container{ID: container.text(1), Source: CRI, Name: metadata.text(1), Labels: labels}, container.text(2), err
}

// sandboxes lists the Pods by the id of their sandbox.
func (c caller) sandboxes(ctx context.Context) (map[string]*Pod, error) {
	list, err := c.list(ctx, criService+"ListPodSandbox", "")
	if err != nil {
		return nil, err
	}
	found := map[string]*Pod{}
	for _, sandbox := range list {
		pod, err := newPod(sandbox)
		if err != nil {
			return nil, err
		}
		found[pod.Sandbox] = pod
	}
	return found, nil
}

// newPod reads a sandbox of CRI.
func newPod(sandbox fields) (*Pod, error) {
	metadata, err := sandbox.message(2)
	if err != nil {
		return nil, err
	}
	labels, err := sandbox.texts(5)
	return &Pod{
		Sandbox: sandbox.text(1), Name: metadata.text(1), UID: metadata.text(2), Namespace: metadata.text(3),
		Labels: podLabels(labels), Ready: sandbox.number(3) == 0, Created: int64(sandbox.number(4)),
	}, err
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
