package flow

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
)

// dials has the test binary connect to addresses, "/" in front of one to listen at, and
// "~" to send a datagram to from a socket that isn't connected, "5*" for five times, and
// wait until its input ends.
const dials = "BPFNET_TEST_DIALS"

func init() {
	if words := strings.Fields(os.Getenv(dials)); len(words) > 0 {
		os.Exit(dial(words))
	}
}

func dial(words []string) int {
	var held []any
	for _, word := range words {
		times := 1
		if n, at, ok := strings.Cut(word, "*"); ok {
			times, _ = strconv.Atoi(n)
			word = at
		}
		for range times {
			one, err := open(word)
			if err != nil {
				fmt.Println(err)
				return 1
			}
			held = append(held, one)
		}
	}
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin)
	runtime.KeepAlive(held)
	return 0
}

func open(word string) (any, error) {
	if at, ok := strings.CutPrefix(word, "/"); ok {
		return net.Listen("tcp", at)
	}
	if to, ok := strings.CutPrefix(word, "~"); ok {
		l, err := net.ListenPacket("udp4", "")
		if err == nil {
			_, err = l.WriteTo([]byte("question"), net.UDPAddrFromAddrPort(netip.MustParseAddrPort(to)))
		}
		return l, err
	}
	return net.Dial("tcp", word)
}

// dialer starts a process that connects to addresses, in a cgroup unless it is "".
func (s *site) dialer(cgroup string, words ...string) (pid int) {
	s.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), dials+"="+strings.Join(words, " "))
	if cgroup != "" {
		dir, err := os.Open(cgroup)
		s.must(err)
		defer dir.Close()
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	}
	in, err := cmd.StdinPipe()
	s.must(err)
	out, err := cmd.StdoutPipe()
	s.must(err)
	s.in(cmd.Start)
	s.Cleanup(func() { in.Close(); _ = cmd.Wait() })
	var line string
	if _, err := fmt.Fscanln(out, &line); line != "ready" {
		s.Fatal(line, err)
	}
	return cmd.Process.Pid
}
