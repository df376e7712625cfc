package engine

import (
	"context"
	"encoding/binary"
	"encoding/json"
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
	"unicode/utf8"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
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
	server.Container(idD, "gone", "left\xff")
	server.Containers[1].Labels, server.Containers[1].Metadata.Name = nil, "left"
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

// raw passes messages through as they are.
type raw struct{}

func (raw) Name() string { return "proto" }

func (raw) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(v.([]byte))}, nil
}

func (raw) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}

var _ encoding.CodecV2 = raw{}

// message makes a message of fields with texts or messages.
func message(fields ...any) []byte {
	var b []byte
	for i := 0; i < len(fields); i += 2 {
		b = protowire.AppendTag(b, protowire.Number(fields[i].(int)), protowire.BytesType)
		if text, ok := fields[i+1].(string); ok {
			b = protowire.AppendString(b, text)
		} else {
			b = protowire.AppendBytes(b, fields[i+1].([]byte))
		}
	}
	return b
}

// newContainerd serves containers by their namespace.
func newContainerd(t *testing.T, containers map[string][]byte) string {
	t.Helper()
	return enginetest.ServeGRPC(t, grpc.NewServer(grpc.ForceServerCodecV2(raw{}), grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		method, _ := grpc.MethodFromServerStream(stream)
		incoming, _ := metadata.FromIncomingContext(stream.Context())
		var request []byte
		if err := stream.RecvMsg(&request); err != nil {
			return err
		}
		switch method {
		case "/containerd.services.namespaces.v1.Namespaces/List":
			var list []byte
			for name := range containers {
				list = append(list, message(1, message(1, name))...)
			}
			return stream.SendMsg(list)
		case "/containerd.services.containers.v1.Containers/List":
			return stream.SendMsg(containers[strings.Join(incoming.Get("containerd-namespace"), "")])
		}
		return status.Error(codes.Unimplemented, "unknown service")
	})))
}

// spec is a container's specification with the path of a cgroup.
func spec(path string) []byte {
	text, _ := json.Marshal(map[string]any{"linux": map[string]any{"cgroupsPath": path}})
	return message(1, "types.containerd.io/opencontainers/runtime-spec/1/Spec", 2, text)
}

func TestContainerd(t *testing.T) {
	socket := newContainerd(t, map[string][]byte{
		"default": message(
			1, message(1, "web", 2, message(1, "role", 2, "test"), 3, "image", 5, spec("/default/web")),
			1, message(1, "unit", 5, spec("system.slice:ctr:unit")),
			1, message(1, "strange", 5, message(2, "{")),
			1, message(1, idA, 2, message(1, "nerdctl/name", 2, "named"), 5, spec("/default/"+idA))),
		"other":  message(1, message(1, "web", 5, spec("/other/web"))),
		"moby":   message(1, message(1, idB)),
		"k8s.io": message(1, message(1, idC)),
	})
	a := ask(t, Sockets{CRI: socket})
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

func says(text string) func(net.Conn) {
	return func(conn net.Conn) { _, _ = io.WriteString(conn, text); _, _ = io.Copy(io.Discard, conn) }
}

// repeats begins with a text, and goes on with another one for ever.
func repeats(begin, more string, pause time.Duration) func(net.Conn) {
	return func(conn net.Conn) {
		_, err := io.WriteString(conn, begin)
		for ; err == nil; _, err = io.WriteString(conn, more) {
			time.Sleep(pause)
		}
	}
}

const httpOK = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"

// grpcAs answers each call with a body and a status.
func grpcAs(t *testing.T, body string, header http.Header) string {
	t.Helper()
	l := enginetest.Listen(t)
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{Protocols: protocols, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
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
		"closed at once":         {misbehave(t, func(net.Conn) {}), misbehave(t, func(net.Conn) {}), "it hung up"},
		"garbage":                {misbehave(t, says(strings.Repeat("\x00\xff\x7fgarbage", 1000))), misbehave(t, says("\x00\xff\r\n\r\n")), ""},
		"HTTP to gRPC, reversed": {goodDocker, goodCRI, ""},
		"garbage without end":    {misbehave(t, repeats("", "garbage", 0)), misbehave(t, repeats("", "garbage", 0)), ""},
		"an answer without end":  {grpcAs(t, strings.Repeat("x", mostBytes+2), ok), misbehave(t, repeats(httpOK+"[", strings.Repeat(" ", 1<<16), 0)), "larger than 16 MiB"},
		"a slow answer":          {"", misbehave(t, repeats(httpOK+"[", " ", 10*time.Millisecond)), "no answer within 1s"},
		"headers without end":    {"", misbehave(t, repeats("HTTP/1.1 200 OK\r\n", "X: "+strings.Repeat("x", 1000)+"\r\n", 0)), ""},
		"an object":              {"", misbehave(t, says(httpOK[:len(httpOK)-2]+"Content-Length: 2\r\n\r\n{}")), "makes no sense"},
		"a list of numbers":      {"", misbehave(t, says(httpOK[:len(httpOK)-2]+"Content-Length: 3\r\n\r\n[1]")), "makes no sense"},
		"half a list":            {"", misbehave(t, says(httpOK[:len(httpOK)-2]+"Content-Length: 3\r\n\r\n[{}")), "makes no sense"},
		"an error of Docker":     {"", misbehave(t, says("HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n")), "status 500 Oh"},
		"another server":         {"", misbehave(t, says("HTTP/1.1 302 Found\r\nLocation: http://localhost/\r\nContent-Length: 0\r\n\r\n")), "302 Found"},
		"no status":              {grpcAs(t, frame+"\x00", nil), "", "isn't gRPC: 200 OK"},
		"no frame":               {grpcAs(t, "", ok), "", "makes no sense"},
		"a compressed frame":     {grpcAs(t, "\x01\x00\x00\x00\x00", ok), "", "makes no sense"},
		"a longer frame":         {grpcAs(t, "\x00\xff\xff\xff\xff", ok), "", "makes no sense"},
		"a broken message":       {grpcAs(t, frame+"\x02\x0a\x7f", ok), "", "makes no sense"},
		"a wrong status":         {grpcAs(t, frame+"\x00", http.Header{"Grpc-Status": {"none"}}), "", "isn't gRPC"},
		"an error of CRI":        {serveRefusing(t, status.Error(codes.Unavailable, "not yet")), "", "status 14: not yet"},
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
				if len(a.Notes) != 1 || !strings.Contains(a.Notes[0], c.note) || strings.ContainsAny(a.Notes[0], "\n") || len(a.Notes[0]) > 400 {
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
		_, err := askDocker(context.Background(), socket)
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

// reference reads a message with another reader. It is false for one that isn't
// valid, or has fields that nobody makes any more.
func reference(message []byte) (fields, bool) {
	found := fields{}
	for len(message) > 0 {
		number, kind, n := protowire.ConsumeTag(message)
		if n < 0 || kind == protowire.StartGroupType {
			return nil, false
		}
		message = message[n:]
		var f field
		switch kind {
		case protowire.VarintType:
			f.number, n = protowire.ConsumeVarint(message)
		case protowire.BytesType:
			f.bytes, n = protowire.ConsumeBytes(message)
		default:
			n = protowire.ConsumeFieldValue(number, kind, message)
		}
		if n < 0 {
			return nil, false
		}
		message, found[uint64(number)] = message[n:], append(found[uint64(number)], f)
	}
	return found, true
}

// What an engine answers may be anything, and what protobuf can read of it is read.
func FuzzAnswer(f *testing.F) {
	labels := message(1, "app", 2, "web")
	f.Add(message(1, message(1, idA, 2, message(1, "web", 2, "uid", 3, "shop"), 5, labels)))
	f.Add(message(1, message(1, idA, 2, idB, 3, message(1, "nginx"), 8, labels)))
	f.Add(message(1, message(1, "web", 2, labels, 5, spec("/default/web"))))
	f.Fuzz(func(t *testing.T, body []byte) {
		frame := append(make([]byte, frameHeader), body...)
		binary.BigEndian.PutUint32(frame[1:], uint32(len(body)))
		answer, err := unframe(frame)
		if want, ok := reference(body); ok && !reflect.DeepEqual(answer, want) {
			t.Errorf("read as %v, want %v", answer, want)
		}
		if err != nil {
			return
		}
		list, err := answer.messages(1)
		if err != nil {
			return
		}
		for _, one := range list {
			pod, podErr := newPod(one)
			container, _, containerErr := newCRIContainer(one)
			placed, placedErr := newContainer(one)
			if podErr == nil && !utf8.ValidString(pod.Name) || containerErr == nil && container.Labels == nil ||
				placedErr == nil && placed.Cgroup != "" && (isID(placed.ID) || placed.Cgroup[0] != '/') {
				t.Errorf("%+v, %+v, %+v", pod, container, placed)
			}
		}
	})
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
