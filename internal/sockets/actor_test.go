package sockets

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"bpfnet/internal/netns"
)

// actorVariable has what a test's own program does with sockets: words that act knows.
const actorVariable = "BPFNET_TEST_ACTOR"

// actor is a process that has sockets.
type actor struct {
	pid   int
	lines *bufio.Scanner
	end   func()
}

// start starts an actor in a network namespace and, unless it is "", a cgroup, and
// waits until it has its sockets.
func start(t testing.TB, ns, cgroup, part string, args ...any) *actor {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), actorVariable+"="+fmt.Sprintf(part, args...))
	cmd.Stderr = os.Stderr
	if cgroup != "" {
		dir, err := os.Open(cgroup)
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := netns.Do(ns, cmd.Start); err != nil {
		t.Fatal(err)
	}
	a := &actor{pid: cmd.Process.Pid, lines: bufio.NewScanner(out)}
	a.end = sync.OnceFunc(func() { in.Close(); _ = cmd.Wait() })
	t.Cleanup(a.end)
	if line := a.line(); line != "ready" {
		t.Fatalf("%s: %q", fmt.Sprintf(part, args...), line)
	}
	return a
}

// line is the next line that the actor writes.
func (a *actor) line() string {
	a.lines.Scan()
	return a.lines.Text()
}

// act is the program of actors: "dial|listen|accept|send NETWORK LOCAL [REMOTE]", and
// "twice" in front of it for a child that has the socket, too. It ends with its input.
func act(part string) int {
	words := strings.Fields(part)
	twice := words[0] == "twice"
	if twice {
		words = words[1:]
	}
	socket, err := open(words[0], words[1], words[2:])
	if err == nil && twice {
		err = hand(socket)
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin)
	return 0
}

func open(verb, network string, ends []string) (any, error) {
	options := func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) {
			if verb != "dial" {
				_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
			}
			if device := os.Getenv("BPFNET_TEST_DEVICE"); device != "" {
				_ = unix.SetsockoptString(int(fd), unix.SOL_SOCKET, unix.SO_BINDTODEVICE, device)
			}
		})
	}
	listen := net.ListenConfig{Control: options}
	switch verb {
	case "dial": // and doesn't wait for an answer
		local, err := net.ResolveTCPAddr(network, ends[0])
		if err != nil {
			return nil, err
		}
		dialer, bound := net.Dialer{LocalAddr: local, Control: options}, make(chan error, 1)
		go func() {
			_, err := dialer.Dial(network, ends[1])
			bound <- err
		}()
		return nil, nil
	case "send":
		socket, err := listen.ListenPacket(context.Background(), network, ends[0])
		if err != nil || len(ends) < 2 {
			return socket, err
		}
		to, err := net.ResolveUDPAddr(network, ends[1])
		if err == nil {
			_, err = socket.WriteTo([]byte("x"), to)
		}
		return socket, err
	}
	listener, err := listen.Listen(context.Background(), network, ends[0])
	if err == nil && verb == "accept" {
		go func() {
			for {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				fmt.Println(conn.RemoteAddr())
				held = append(held, conn)
			}
		}()
	}
	return listener, err
}

// held keeps connections open.
var held []net.Conn

// hand starts a child that has the socket, too.
func hand(socket any) error {
	filer, ok := socket.(interface{ File() (*os.File, error) })
	if !ok {
		return fmt.Errorf("%T has no file", socket)
	}
	file, err := filer.File()
	if err != nil {
		return err
	}
	defer file.Close()
	child := exec.Command("sleep", "60")
	child.ExtraFiles = []*os.File{file}
	child.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return child.Start()
}
