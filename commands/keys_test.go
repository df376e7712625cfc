package commands

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"bpfnet/internal/datapath"
)

// terminal is a pseudo terminal, and what was written to it.
type terminal struct {
	user, program *os.File // its ends
	mu            sync.Mutex
	screen        bytes.Buffer
}

func newTerminal(t *testing.T) *terminal {
	t.Helper()
	user, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skipf("no pseudo terminals: %v", err)
	}
	fd := int(user.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skipf("no pseudo terminals: %v", err)
	}
	term := &terminal{user: user, program: program}
	var read sync.WaitGroup
	read.Go(func() {
		text := make([]byte, 4096)
		for {
			n, err := user.Read(text)
			if err != nil {
				return
			}
			term.mu.Lock()
			term.screen.Write(text[:n])
			term.mu.Unlock()
		}
	})
	t.Cleanup(func() {
		_ = program.Close() // ends the reader
		read.Wait()
		_ = user.Close()
	})
	return term
}

func (term *terminal) state(t *testing.T) unix.Termios {
	t.Helper()
	state, err := unix.IoctlGetTermios(int(term.program.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return *state
}

// last is the frame that was drawn last.
func (term *terminal) last() string {
	term.mu.Lock()
	defer term.mu.Unlock()
	frames := strings.Split(term.screen.String(), "\x1b[?7l")
	return strings.ReplaceAll(frames[len(frames)-1], "\r", "")
}

// await waits for a frame that fits, and returns it.
func (term *terminal) await(t *testing.T, what string, fits func(frame string) bool) string {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if frame := term.last(); strings.HasSuffix(frame, "\x1b[?7h") && fits(frame) {
			return frame
		}
	}
	t.Fatalf("%s isn't drawn:\n%q", what, term.last())
	return ""
}

func (term *terminal) press(t *testing.T, keys string) {
	t.Helper()
	if _, err := term.user.WriteString(keys); err != nil {
		t.Fatal(err)
	}
}

var escapes = regexp.MustCompile("\x1b\\[[0-9;?]*[A-Za-z]")

// TestLiveFlows watches flows on a terminal of 80 columns, sorts them by keys, and ends.
func TestLiveFlows(t *testing.T) {
	for _, lines := range []int{24, 8} {
		term := newTerminal(t)
		before := term.state(t)
		var stdout, stderr bytes.Buffer
		f := newFake()
		f.instances[dnsProgram] = &datapath.Instance{Name: dnsProgram}
		env := f.env(&stdout, &stderr)
		env.Stdout = term.program
		env.Terminal = func() (int, int, bool) { return 80, lines, true }
		env.Keys = func() (<-chan byte, func(), bool) { return terminalKeys(int(term.program.Fd())) }
		done := make(chan int)
		go func() { done <- Run(context.Background(), env, strings.Fields("watch flows --interval 100ms --names")) }()

		// The first frame has all, later ones what moves; nginx is first by what it receives.
		frame := term.await(t, "curl", func(frame string) bool {
			return strings.Contains(frame, "curl/900") && strings.Contains(frame, " www.shop.example:80 ") && strings.Contains(frame, "kB/s")
		})
		for line := range strings.Lines(escapes.ReplaceAllString(frame, "")) {
			if n := utf8.RuneCountInString(strings.TrimRight(line, "\n")); n > 80 {
				t.Errorf("%d columns: %s", n, line)
			}
		}
		if n := strings.Count(frame, "\n"); n > lines-1 || !strings.Contains(frame, "q quit\n") {
			t.Errorf("%d lines:\n%s", n, frame)
		}
		quiet := term.state(t)
		if quiet.Lflag&(unix.ICANON|unix.ECHO) != 0 || quiet.Lflag&unix.ISIG == 0 {
			t.Errorf("state %o", quiet.Lflag)
		}
		firstIs := func(word string) func(string) bool {
			return func(frame string) bool {
				_, rows, _ := strings.Cut(frame, "\n")
				return strings.HasPrefix(rows, word)
			}
		}
		term.press(t, "r")
		term.await(t, "nginx first", firstIs("nginx"))
		term.press(t, "xp")
		term.await(t, "curl first", firstIs("curl"))
		term.press(t, "rt")
		term.await(t, "curl first", firstIs("curl"))
		term.press(t, "q")
		if exit := <-done; exit != 0 {
			t.Errorf("exit %d: %s", exit, stderr.String())
		}
		if after := term.state(t); after != before {
			t.Errorf("state %+v, was %+v", after, before)
		}
	}
}

// TestKeysGone has a terminal whose other end is closed, and what is none.
func TestKeysGone(t *testing.T) {
	term := newTerminal(t)
	pressed, stop, ok := terminalKeys(int(term.program.Fd()))
	if !ok {
		t.Fatal("no keys")
	}
	term.press(t, "a")
	if key := <-pressed; key != 'a' {
		t.Errorf("%q", key)
	}
	term.press(t, "b") // nobody takes it
	time.Sleep(2 * keyWait)
	stop()
	stop()
	file, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, _, ok := terminalKeys(int(file.Fd())); ok {
		t.Error("/dev/null has keys")
	}
}
