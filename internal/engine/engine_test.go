package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	containers "github.com/containerd/containerd/api/services/containers/v1"
	namespaces "github.com/containerd/containerd/api/services/namespaces/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"bpfnet/internal/engine/enginetest"
)

var (
	idA, idB, idC, idD = strings.Repeat("a", 64), strings.Repeat("b", 64), strings.Repeat("c", 64), strings.Repeat("d", 64)
	none               = map[string]string{}
)

// ask asks the engines of the test alone.
func ask(t *testing.T, sockets Sockets) Answer {
	t.Helper()
	usual := [][]string{usualCRI, usualDocker}
	usualCRI, usualDocker = nil, nil
	t.Cleanup(func() { usualCRI, usualDocker = usual[0], usual[1] })
	return Ask(t.Context(), sockets)
}

func (a Answer) want(t *testing.T, want map[string]Container) {
	t.Helper()
	if len(a.Notes) > 0 {
		t.Errorf("notes: %q", a.Notes)
	}
	for id, c := range want {
		c.ID = id
		want[id] = c
		if got := a.Containers[id]; !reflect.DeepEqual(got, c) {
			t.Errorf("%.12s is\n%+v, want\n%+v", id, got, c)
		}
	}
	if len(a.Containers) != len(want) {
		t.Errorf("%d containers, want %d", len(a.Containers), len(want))
	}
}

func TestCRI(t *testing.T) {
	server := &enginetest.CRI{Runtime: "cri-o"}
	server.Pod(idA, "shop", "web", "uid-1", 7, map[string]string{"app": "web", "io.kubernetes.pod.name": "web", "io.kubernetes.pod.uid": "uid-1"})
	server.Pod(idC, "shop", "web", "uid-0", 9, nil).State = cri.PodSandboxState_SANDBOX_NOTREADY
	server.Container(idB, idA, "nginx")
	server.Container(idD, "gone", "left")
	server.Containers[1].Labels = nil
	pod := &Pod{Sandbox: idA, UID: "uid-1", Namespace: "shop", Name: "web", Labels: map[string]string{"app": "web"}, Ready: true, Created: 7}
	old := &Pod{Sandbox: idC, UID: "uid-0", Namespace: "shop", Name: "web", Labels: none, Created: 9}
	ask(t, Sockets{CRI: server.Serve(t)}).want(t, map[string]Container{
		idA: {Engine: "crio", Source: CRI, Labels: none, Pod: pod},
		idB: {Engine: "crio", Source: CRI, Name: "nginx", Labels: map[string]string{"io.kubernetes.container.name": "nginx"}, Pod: pod},
		idC: {Engine: "crio", Source: CRI, Labels: none, Pod: old},
		idD: {Engine: "crio", Source: CRI, Name: "left", Labels: none},
	})
	if !pod.Newer(old) || old.Newer(pod) {
		t.Error("a Pod that isn't ready is newer")
	}
}

// Thousands of Pods are more than gRPC's usual limit of 4 MiB.
func TestLargeAnswer(t *testing.T) {
	server := &enginetest.CRI{Runtime: "containerd"}
	for i := range 4000 {
		server.Pod(fmt.Sprintf("%064x", i), "shop", fmt.Sprint("web-", i), "uid", 1, map[string]string{"long": strings.Repeat("x", 2000)})
	}
	if a := ask(t, Sockets{CRI: server.Serve(t)}); len(a.Containers) != 4000 || len(a.Notes) > 0 {
		t.Errorf("%d containers, %q", len(a.Containers), a.Notes)
	}
}

const dockerList = `[
	{"Id": "%s", "Names": ["/other/alias", "/web"], "Labels": {"team": "shop"}, "State": "running", "Ports": [{"PrivatePort": 80}]},
	{"Id": "%s", "Names": null, "Labels": null}]`

func TestDockerAndPodman(t *testing.T) {
	for _, c := range []struct {
		source Source
		header string
	}{{Docker, "Api-Version"}, {Podman, "Libpod-Api-Version"}} {
		socket := enginetest.HTTP(t, func(w http.ResponseWriter, r *http.Request) {
			if r.Method != "GET" || r.URL.String() != "/containers/json" {
				t.Errorf("asked for %s %s", r.Method, r.URL)
			}
			w.Header().Set(c.header, "1.41")
			fmt.Fprintf(w, dockerList, idA, idB)
		})
		ask(t, Sockets{Docker: socket}).want(t, map[string]Container{
			idA: {Engine: string(c.source), Source: c.source, Name: "web", Labels: map[string]string{"team": "shop"}},
			idB: {Engine: string(c.source), Source: c.source, Labels: none},
		})
	}
}

// The user's own sockets are asked, too.
func TestUsualPlaces(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "podman"), 0o700); err != nil {
		t.Fatal(err)
	}
	socket := enginetest.HTTP(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintf(w, dockerList, idA, idB) })
	if err := os.Symlink(socket, filepath.Join(dir, "podman/podman.sock")); err != nil {
		t.Fatal(err)
	}
	if a := ask(t, Sockets{User: dir}); len(a.Containers) != 2 || len(a.Notes) > 0 {
		t.Errorf("%d containers, %q", len(a.Containers), a.Notes)
	}
}

// owned serves containers by containerd's namespace.
type owned struct {
	containers.UnimplementedContainersServer
	in map[string][]*containers.Container
}

func (o owned) List(ctx context.Context, _ *containers.ListContainersRequest) (*containers.ListContainersResponse, error) {
	incoming, _ := metadata.FromIncomingContext(ctx)
	return &containers.ListContainersResponse{Containers: o.in[strings.Join(incoming.Get("containerd-namespace"), "")]}, nil
}

// owners serves the namespaces.
type owners struct {
	namespaces.UnimplementedNamespacesServer
	owned
}

func (o owners) List(context.Context, *namespaces.ListNamespacesRequest) (*namespaces.ListNamespacesResponse, error) {
	var list namespaces.ListNamespacesResponse
	for name := range o.in {
		list.Namespaces = append(list.Namespaces, &namespaces.Namespace{Name: name})
	}
	return &list, nil
}

// spec is a container's specification.
func spec(text string) *anypb.Any {
	return &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/Spec", Value: []byte(text)}
}

// specIn is one with the path of a cgroup.
func specIn(cgroup string) *anypb.Any {
	return spec(fmt.Sprintf(`{"ociVersion": "1.0.2", "linux": {"cgroupsPath": %q}}`, cgroup))
}

func TestContainerd(t *testing.T) {
	in := owned{in: map[string][]*containers.Container{
		"default": {
			{ID: "web", Labels: map[string]string{"role": "test"}, Image: "image", Spec: specIn("/default/web")},
			{ID: "unit", Spec: specIn("system.slice:ctr:unit")},
			{ID: "strange", Spec: spec("{")},
			{ID: "without"},
			{ID: idA, Labels: map[string]string{"nerdctl/name": "named"}, Spec: specIn("/default/" + idA)},
		},
		"other":  {{ID: "web", Spec: specIn("/other/web")}},
		"moby":   {{ID: idB}},
		"k8s.io": {{ID: idC}},
	}}
	server := grpc.NewServer()
	containers.RegisterContainersServer(server, in)
	namespaces.RegisterNamespacesServer(server, owners{owned: in})
	a := ask(t, Sockets{CRI: enginetest.ServeGRPC(t, server)})
	a.want(t, map[string]Container{
		idA: {Engine: "containerd", Source: Containerd, Name: "named", Labels: map[string]string{"nerdctl/name": "named"}},
	})
	placed := map[string]string{}
	for _, c := range a.Placed {
		placed[c.Cgroup] = c.ID + " " + c.Name + " " + c.Labels["role"]
	}
	if want := map[string]string{"/default/web": "web web test", "/other/web": "web web "}; !reflect.DeepEqual(placed, want) {
		t.Errorf("placed: %v, want %v", placed, want)
	}
}

// CRI is believed first, and who knows nothing takes nothing away.
func TestOrder(t *testing.T) {
	server := &enginetest.CRI{Runtime: "docker"}
	server.Pod(idC, "shop", "web", "uid", 1, nil)
	server.Container(idA, idC, "nginx")
	socket := enginetest.HTTP(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintf(w, dockerList, idA, idB) })
	a := ask(t, Sockets{CRI: server.Serve(t), Docker: socket})
	if a.Containers[idA].Name != "nginx" || a.Containers[idB].Source != Docker || len(a.Containers) != 3 {
		t.Errorf("%+v", a)
	}
	for _, c := range []struct {
		said []Source
		want Source
	}{
		{[]Source{Containerd, Podman, Docker, CRI, Docker}, CRI}, {[]Source{Containerd, Docker, Podman}, Docker}, {[]Source{Podman, Docker, Containerd}, Podman},
	} {
		answer := Answer{Containers: map[string]Container{}}
		var said []Container
		for _, source := range c.said {
			said = append(said, Container{ID: idA, Source: source})
		}
		if answer.add(said); answer.Containers[idA].Source != c.want {
			t.Errorf("of %s %s is believed", c.said, answer.Containers[idA].Source)
		}
	}
}

// misbehave serves connections that a function has for itself.
func misbehave(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
	l := enginetest.Listen(t)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer conn.Close(); serve(conn) }()
		}
	}()
	return l.Addr().String()
}

// asked waits for the beginning of a question: who is answered before has nothing to
// compare the answer with.
func asked(conn net.Conn) { _, _ = conn.Read(make([]byte, 1)) }

func says(text string) func(net.Conn) {
	return func(conn net.Conn) { asked(conn); _, _ = io.WriteString(conn, text); _, _ = io.Copy(io.Discard, conn) }
}

// repeats begins with a text, and goes on with another one for ever.
func repeats(begin, more string, pause time.Duration) func(net.Conn) {
	return func(conn net.Conn) {
		asked(conn)
		_, err := io.WriteString(conn, begin)
		for ; err == nil; _, err = io.WriteString(conn, more) {
			time.Sleep(pause)
		}
	}
}

// Frames of HTTP/2.
const (
	h2Settings = "\x00\x00\x00\x04\x00\x00\x00\x00\x00"
	h2Ping     = "\x00\x00\x08\x06\x00\x00\x00\x00\x0001234567"
)

const httpOK = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"

// grpcAs answers each call with a body and a status.
func grpcAs(t *testing.T, body string, header http.Header) string {
	t.Helper()
	l := enginetest.Listen(t)
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{Protocols: protocols, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/grpc")
		for name := range header {
			w.Header().Set(http.TrailerPrefix+name, header.Get(name))
		}
		_, _ = io.WriteString(w, body)
	})}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close() })
	return l.Addr().String()
}

type refusing struct {
	enginetest.CRI
	err error
}

func (r *refusing) Version(context.Context, *cri.VersionRequest) (*cri.VersionResponse, error) {
	return nil, r.err
}

func serveRefusing(t *testing.T, err error) string {
	server := grpc.NewServer()
	cri.RegisterRuntimeServiceServer(server, &refusing{err: err})
	return enginetest.ServeGRPC(t, server)
}

// An engine that isn't there, hangs or answers nonsense costs one note, and a second
// or so on a busy machine, and nothing of what others say.
func TestOneNote(t *testing.T) {
	good := &enginetest.CRI{Runtime: "containerd"}
	good.Pod(idA, "shop", "web", "uid", 1, nil)
	goodCRI := good.Serve(t)
	goodDocker := enginetest.HTTP(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintf(w, dockerList, idA, idB) })
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	ok := http.Header{"Grpc-Status": {"0"}}
	frame := "\x00\x00\x00\x00"
	for name, c := range map[string]struct {
		cri, docker string
		note        string
	}{
		"no socket":              {"/nowhere/socket", "/nowhere/socket", "no such file or directory"},
		"a long path":            {"/" + strings.Repeat("x", 200), "/" + strings.Repeat("x", 200), "invalid argument"},
		"a file":                 {file, file, "connection refused"},
		"silent":                 {misbehave(t, says("")), misbehave(t, says("")), "no answer within 1s"},
		"not accepted":           {enginetest.Listen(t).Addr().String(), enginetest.Listen(t).Addr().String(), "no answer within 1s"},
		"closed at once":         {misbehave(t, func(net.Conn) {}), misbehave(t, func(net.Conn) {}), ""},
		"garbage":                {misbehave(t, says(strings.Repeat("\x00\xff\x7fgarbage", 1000))), misbehave(t, says("\x00\xff\r\n\r\n")), ""},
		"HTTP to gRPC, reversed": {goodDocker, goodCRI, ""},
		"garbage without end":    {misbehave(t, repeats("", "garbage", 0)), misbehave(t, repeats("", "garbage", 0)), ""},
		"pings without end":      {misbehave(t, repeats(h2Settings, strings.Repeat(h2Ping, 1000), 0)), "", "no answer within 1s"},
		"an answer without end":  {grpcAs(t, strings.Repeat("x", mostBytes+2), ok), misbehave(t, repeats(httpOK+"[", strings.Repeat(" ", 1<<16), 0)), "larger than"},
		"a slow answer":          {"", misbehave(t, repeats(httpOK+"[", " ", 10*time.Millisecond)), "no answer within 1s"},
		"headers without end":    {"", misbehave(t, repeats("HTTP/1.1 200 OK\r\n", "X: "+strings.Repeat("x", 1000)+"\r\n", 0)), ""},
		"an object":              {"", misbehave(t, says(httpOK[:len(httpOK)-2]+"Content-Length: 2\r\n\r\n{}")), "makes no sense"},
		"a list of numbers":      {"", misbehave(t, says(httpOK[:len(httpOK)-2]+"Content-Length: 3\r\n\r\n[1]")), "makes no sense"},
		"half a list":            {"", misbehave(t, says(httpOK[:len(httpOK)-2]+"Content-Length: 3\r\n\r\n[{}")), "makes no sense"},
		"an error of Docker":     {"", misbehave(t, says("HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n")), "status 500 Oh"},
		"another server":         {"", misbehave(t, says("HTTP/1.1 302 Found\r\nLocation: http://localhost/\r\nContent-Length: 0\r\n\r\n")), "302 Found"},
		"no status":              {grpcAs(t, frame+"\x00", nil), "", "without sending trailers"},
		"no frame":               {grpcAs(t, "", ok), "", "no response message"},
		"a compressed frame":     {grpcAs(t, "\x01\x00\x00\x00\x00", ok), "", "compressed flag"},
		"a longer frame":         {grpcAs(t, "\x00\xff\xff\xff\xff", ok), "", "larger than"},
		"a broken message":       {grpcAs(t, frame+"\x02\x0a\x7f", ok), "", "invalid wire-format data"},
		"a wrong status":         {grpcAs(t, frame+"\x00", http.Header{"Grpc-Status": {"none"}}), "", "malformed grpc-status"},
		"an error of CRI":        {serveRefusing(t, status.Error(codes.Unavailable, "not yet")), "", "for names: not yet"},
		"neither CRI nor containerd": {
			serveRefusing(t, status.Error(codes.Unimplemented, "unknown")), "", "neither CRI v1 nor calls of containerd",
		},
	} {
		t.Run(name, func(t *testing.T) {
			for flag, sockets := range map[string]Sockets{"cri": {CRI: c.cri, Docker: goodDocker}, "docker": {CRI: goodCRI, Docker: c.docker}} {
				if sockets.CRI == "" || sockets.Docker == "" {
					continue
				}
				before, start := runtime.NumGoroutine(), time.Now()
				a := ask(t, sockets)
				if took := time.Since(start); took > 3*Timeout {
					t.Errorf("%s: took %s", flag, took)
				}
				if len(a.Notes) != 1 || !strings.Contains(a.Notes[0], c.note) || strings.ContainsAny(a.Notes[0], "\n") || strings.Contains(a.Notes[0], "desc =") || len(a.Notes[0]) > 400 {
					t.Errorf("%s: notes: %q", flag, a.Notes)
				}
				if len(a.Containers) == 0 {
					t.Errorf("%s: what the other engine says is missing", flag)
				}
				left := 0
				for range 100 {
					if left = runtime.NumGoroutine() - before; left <= 0 {
						break
					}
					time.Sleep(5 * time.Millisecond)
				}
				if left > 0 {
					t.Errorf("%s: %d goroutines are left", flag, left)
				}
			}
		})
	}
}

// A socket that this user may not use is an error that says so; root's caller is
// another user for that.
func TestPermission(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("not root")
	}
	socket := enginetest.Listen(t).Addr().String()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and end the thread with it
		_ = unix.Setfsuid(65534)
		_, err := dial(context.Background(), socket)
		done <- err
	}()
	if err := <-done; !errors.Is(err, fs.ErrPermission) || reason(err) != "permission denied" {
		t.Errorf("%v", err)
	}
}

func TestCancel(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	start := time.Now()
	Ask(ctx, Sockets{CRI: misbehave(t, says("")), Docker: misbehave(t, says(""))})
	if took := time.Since(start); took >= Timeout {
		t.Errorf("took %s", took)
	}
}

func TestParseSocket(t *testing.T) {
	for text, want := range map[string]string{
		"/run/x.sock": "/run/x.sock", "unix:///run/x.sock": "/run/x.sock", "x.sock": "x.sock",
		"": "", "unix://": "", "tcp://127.0.0.1:2375": "", "npipe:////./pipe/x": "",
	} {
		if got, ok := ParseSocket(text); got != want || ok != (want != "") {
			t.Errorf("%q is %q, %t", text, got, ok)
		}
	}
}
