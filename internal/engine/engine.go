// Package engine asks container engines for the names of containers and Pods. What
// they say is believed for ids alone, and which of these exist is for the kernel to
// say.
package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Timeout is how long all engines together may take.
const Timeout = time.Second

// mostBytes bounds an answer, as containerd and the kubelet do.
const mostBytes = 16 << 20

// Source is which of the engines' interfaces told a name.
type Source string

// The sources, the one that is believed first in front.
const (
	CRI        Source = "cri"
	Docker     Source = "docker"
	Podman     Source = "podman"
	Containerd Source = "containerd" // its namespaces, without CRI
)

// Sockets are the paths of the sockets at which engines are asked; "" are the usual
// places, where it is no error that there is nothing.
type Sockets struct {
	CRI    string // of CRI, or of containerd
	Docker string // of Docker, or of Podman
	User   string // directory of the user's own sockets, XDG_RUNTIME_DIR; "" for none
}

// The usual places, of the user's own below User.
var (
	usualCRI = []string{
		"/run/containerd/containerd.sock", "/run/crio/crio.sock", "/run/k3s/containerd/containerd.sock", "/run/cri-dockerd.sock",
	}
	usualDocker     = []string{"/run/docker.sock", "/run/podman/podman.sock"}
	usualDockerUser = []string{"docker.sock", "podman/podman.sock"}
)

// ParseSocket returns the path of a socket, which may have unix:// in front. It is
// false for what isn't one.
func ParseSocket(text string) (path string, ok bool) {
	path = strings.TrimPrefix(text, "unix://")
	if path == "" || strings.Contains(path, "://") {
		return "", false
	}
	return path, true
}

// Container is what an engine says about a container.
type Container struct {
	ID     string
	Engine string // "containerd", "crio", "docker", "podman", or what CRI calls its runtime
	Source Source
	Name   string            // "" of a Pod's sandbox, and where there is none
	Labels map[string]string // not nil
	Pod    *Pod              // nil: it is in none
	Cgroup string            // path; "" where the id is one that cgroups have in their names
}

// Pod is what an engine says about a Pod. One that was made anew under its old name
// is another one.
type Pod struct {
	Sandbox              string // id
	UID, Namespace, Name string
	Labels               map[string]string // not nil; without the kubelet's own
	Ready                bool
	Created              int64 // in ns since 1970
}

// Newer says whether of two Pods of one name this is the one that is meant.
func (p *Pod) Newer(other *Pod) bool {
	if p.Ready != other.Ready {
		return p.Ready
	}
	return p.Created > other.Created
}

// Answer is what the engines said.
type Answer struct {
	Containers map[string]Container // by id, that of a cgroup
	Placed     []Container          // those that have a Cgroup instead; of several namespaces, so ids repeat
	Notes      []string             // who couldn't be asked, and why
}

// asker asks the engine at a path. What it returns with an error is part of it.
type asker func(ctx context.Context, path string) ([]Container, error)

// socket is one that is asked, in one of two ways.
type socket struct {
	path  string
	given bool
	ask   asker
}

func (s Sockets) list() []socket {
	var list []socket
	if s.CRI != "" {
		list = append(list, socket{s.CRI, true, askCRI})
	} else {
		for _, path := range usualCRI {
			list = append(list, socket{path, false, askCRI})
		}
	}
	if s.Docker != "" {
		return append(list, socket{s.Docker, true, askDocker})
	}
	for _, path := range usualDocker {
		list = append(list, socket{path, false, askDocker})
	}
	for _, path := range usualDockerUser {
		if s.User != "" {
			list = append(list, socket{filepath.Join(s.User, path), false, askDocker})
		}
	}
	return list
}

// Ask asks all engines at the same time, and returns after Timeout at the latest.
func Ask(ctx context.Context, sockets Sockets) Answer {
	ctx, cancel := context.WithTimeout(ctx, Timeout)
	defer cancel()
	list := sockets.list()
	found, errs := make([][]Container, len(list)), make([]error, len(list))
	var group sync.WaitGroup
	for i, s := range list {
		group.Go(func() { found[i], errs[i] = s.ask(ctx, s.path) })
	}
	group.Wait()
	answer := Answer{Containers: map[string]Container{}}
	for i, s := range list {
		if err := errs[i]; err != nil && (s.given || !errors.Is(err, fs.ErrNotExist)) {
			answer.Notes = append(answer.Notes, fmt.Sprintf("the engine at %s can't be asked for names: %s", s.path, reason(err)))
		}
	}
	answer.add(slices.Concat(found...))
	return answer
}

// orEmpty are labels that aren't nil.
func orEmpty(labels map[string]string) map[string]string {
	if labels == nil {
		return map[string]string{}
	}
	return labels
}

// add adds what engines said, in the order in which they are believed: Docker names
// what containerd runs for it.
func (a *Answer) add(found []Container) {
	slices.SortStableFunc(found, func(x, y Container) int { return cmp.Compare(x.rank(), y.rank()) })
	for _, c := range found {
		if c.Cgroup != "" {
			a.Placed = append(a.Placed, c)
		}
		if _, ok := a.Containers[c.ID]; !ok && isID(c.ID) {
			a.Containers[c.ID] = c
		}
	}
}

// rank is the place of the container's source in that order. Docker's and Podman's
// sockets are believed in their own.
func (c Container) rank() int {
	switch c.Source {
	case CRI:
		return 0
	case Containerd:
		return 2
	}
	return 1
}

// reason is what an error of a socket, of HTTP or of gRPC comes down to.
func reason(err error) string {
	var errno syscall.Errno
	answer, isGRPC := status.FromError(err)
	switch {
	case errors.Is(err, context.DeadlineExceeded) || answer.Code() == codes.DeadlineExceeded:
		return fmt.Sprintf("no answer within %s", Timeout)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "it hung up"
	case errors.As(err, &errno):
		return errno.Error()
	case answer.Code() == codes.Unimplemented:
		return "it answers neither CRI v1 nor calls of containerd"
	case isGRPC:
		return cmp.Or(answer.Message(), answer.Code().String())
	}
	for inner := err; inner != nil; inner = errors.Unwrap(inner) {
		err = inner
	}
	return err.Error()
}

func dial(ctx context.Context, path string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "unix", path)
}
