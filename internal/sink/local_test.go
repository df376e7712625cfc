package sink

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// lines counts the lines of a file.
func lines(path string) int {
	text, _ := os.ReadFile(path)
	return bytes.Count(text, []byte("\n"))
}

// TestRotation checks that a file that is renamed, removed or cut is gone on with, and
// that nothing is lost.
func TestRotation(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := dir + "/log"
	if err := os.WriteFile(path, []byte("before\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, said := open(t, "file="+path)
	send := func(n, want int) {
		t.Helper()
		s.Send(numbered(t, n))
		eventually(t, fmt.Sprintf("%d lines", want), func() bool { return lines(path) == want })
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	send(1, 2)
	must(os.Rename(path, path+".1")) // logrotate
	send(2, 1)
	send(3, 2)
	must(os.Rename(path, path+".2")) // logrotate with create
	must(os.WriteFile(path, nil, 0o644))
	send(4, 1)
	must(os.Truncate(path, 0)) // logrotate with copytruncate
	send(5, 1)
	must(os.Remove(path))
	send(6, 1)
	must(os.Remove(path)) // a directory that goes and comes
	must(os.Rename(dir, dir+"-gone"))
	s.Send(numbered(t, 7))
	eventually(t, "a note", func() bool { return len(said.all()) == 1 })
	must(os.Rename(dir+"-gone", dir))
	eventually(t, "the line", func() bool { return lines(path) == 1 })
	closed(t, s)
	for name, want := range map[string]string{".1": "number 0001", ".2": "number 0003", "": "number 0007"} {
		text, err := os.ReadFile(path + name)
		if err != nil || !strings.Contains(string(text), want) {
			t.Errorf("%s: %v %s", name, err, text)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm()&^fileMode != 0 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	want := []string{"sink file=" + path + ": open " + path + ": no such file or directory", "sink file=" + path + " takes alerts again"}
	if all := said.all(); !slices.Equal(all, want) {
		t.Errorf("%q", all)
	}
}

// TestFullDisk fills a file system and makes it larger: one line isn't whole, and all
// alerts are in others.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("bpfnet-sink", dir, "tmpfs", 0, "size=4k"); err != nil {
		t.Skipf("mount a small file system: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	s, said := open(t, "file="+dir+"/log")
	const count = 20
	for n := range count {
		s.Send(numbered(t, n))
	}
	eventually(t, "a note", func() bool { return len(said.all()) == 1 })
	if err := syscall.Mount("bpfnet-sink", dir, "tmpfs", syscall.MS_REMOUNT, "size=1m"); err != nil {
		t.Fatal(err)
	}
	closed(t, s)
	text, err := os.ReadFile(dir + "/log")
	if err != nil {
		t.Fatal(err)
	}
	whole, torn := 0, 0
	for line := range strings.Lines(string(text)) {
		switch {
		case !json.Valid([]byte(line)):
			torn++
		case strings.Contains(line, fmt.Sprintf("number %04d", whole)):
			whole++
		}
	}
	if whole != count || torn != 1 {
		t.Errorf("%d whole lines, %d others:\n%s", whole, torn, text)
	}
	want := []string{"sink file=" + dir + "/log: write: no space left on device", "sink file=" + dir + "/log takes alerts again"}
	if all := said.all(); !slices.Equal(all, want) {
		t.Errorf("%q", all)
	}
}

// TestTorn checks that the end of a line which a full disk has cut off spoils no other.
func TestTorn(t *testing.T) {
	t.Parallel()
	path := t.TempDir() + "/log"
	if err := os.WriteFile(path, []byte(`{"half`), 0o600); err != nil {
		t.Fatal(err)
	}
	d := &file{path: path}
	if err := d.reopen(); err != nil {
		t.Fatal(err)
	}
	defer d.close()
	d.torn = true
	for range 2 {
		if err := d.write([]byte("{}")); err != nil {
			t.Fatal(err)
		}
	}
	if text, _ := os.ReadFile(path); string(text) != "{\"half\n{}\n{}\n" {
		t.Errorf("%q", text)
	}
}

// TestPipe checks a named pipe that nobody reads for a while.
func TestPipe(t *testing.T) {
	t.Parallel()
	path := t.TempDir() + "/pipe"
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	s, said := open(t, "file="+path)
	s.Send(numbered(t, 1))
	eventually(t, "a note", func() bool { return len(said.all()) == 1 })
	reader, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	line, err := bufio.NewReader(reader).ReadString('\n')
	if err != nil || !json.Valid([]byte(line)) {
		t.Errorf("%v: %s", err, line)
	}
	closed(t, s)
}

// TestSyslog checks what daemons get that listen for datagrams or streams, also after
// they were started anew.
func TestSyslog(t *testing.T) {
	t.Parallel()
	path := t.TempDir() + "/log"
	bind := func() *net.UnixConn {
		t.Helper()
		conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	receive := func(conn net.Conn) string {
		t.Helper()
		b := make([]byte, 64<<10)
		_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		n, err := conn.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		return string(b[:n])
	}
	daemon := bind()
	s, said := open(t, "syslog="+path)
	s.Send(hit(t, "two\nlines"))
	got := receive(daemon)
	shape := regexp.MustCompile(`^<28>Jan  2 \d\d:\d\d:\d\d bpfnet\[\d+\]: \{.*\}$`)
	if !shape.MatchString(got) {
		t.Errorf("%q", got)
	}
	golden(t, "syslog", regexp.MustCompile(`\d\d:\d\d:\d\d bpfnet\[\d+\]`).ReplaceAllString(got, "TIME bpfnet[PID]")+"\n")

	daemon.Close() // the path is removed
	os.Remove(path)
	s.Send(numbered(t, 1))
	eventually(t, "a note", func() bool { return len(said.all()) == 1 })
	daemon = bind()
	if got := receive(daemon); !strings.Contains(got, "number 0001") {
		t.Errorf("%q", got)
	}
	daemon.Close()
	os.Remove(path)

	l := listen(t, "unix", path)
	defer l.Close()
	s.Send(numbered(t, 2))
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got := receive(conn); !shape.MatchString(strings.TrimSuffix(got, "\n")) || !strings.HasSuffix(got, "}\n") {
		t.Errorf("%q", got)
	}
	closed(t, s)
}

// script makes a command of shell lines.
func script(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "a command.sh")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestExec checks what a command gets, and that no shell reads it.
func TestExec(t *testing.T) {
	t.Setenv("SINK_SECRET", "s3cr3t")
	t.Setenv("SINK_OTHER", "seen")
	dir := t.TempDir()
	web := serve(t, nil)
	path := script(t, `cd "`+dir+`"; cat > stdin; printf '%s\n' "$@" > args; env > env; echo out; echo err >&2`)
	odd := "$(touch pwned) `touch pwned` ; touch pwned | \"'\\ *\n"
	s, said := open(t, "exec="+path+",arg=$(touch pwned),arg=two words,arg=", "webhook="+web.URL+",secret-env=SINK_SECRET")
	e := hit(t, odd)
	s.Send(e)
	closed(t, s)
	read := func(name string) string {
		t.Helper()
		text, err := os.ReadFile(dir + "/" + name)
		if err != nil {
			t.Error(err)
		}
		return string(text)
	}
	if got := read("stdin"); got != string(e.Document)+"\n" {
		t.Errorf("stdin: %s", got)
	}
	if got := read("args"); got != "$(touch pwned)\ntwo words\n\n" {
		t.Errorf("arguments: %q", got)
	}
	if _, err := os.Stat(dir + "/pwned"); err == nil {
		t.Error("a shell has read it")
	}
	var fields []string
	for line := range strings.Lines(read("env")) {
		if strings.HasPrefix(line, "BPFNET_ALERT_") {
			fields = append(fields, line)
		}
		if strings.Contains(line, "s3cr3t") {
			t.Error("it has the secret of another sink")
		}
	}
	slices.Sort(fields)
	golden(t, "exec", strings.Join(fields, ""))
	if !strings.Contains(read("env"), "SINK_OTHER=seen\n") {
		t.Error("it has no environment")
	}
	if said.all() != nil {
		t.Error(said.all())
	}
}

// TestExecFails checks commands that fail, hang, and don't read.
func TestExecFails(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		script, options string
		want            Undelivered
		runs            int
		note            string
	}{
		"fails":       {"echo a >> $0.log; echo why >&2; echo more >&2; exit 3", "", Undelivered{Refused: 2}, 2, "it ended with exit status 3: why"},
		"asks again":  {"echo a >> $0.log; [ $(wc -l < $0.log) -gt 1 ] || exit 75", "", Undelivered{}, 3, "exit 75: it asks for another run"},
		"is killed":   {"echo a >> $0.log; kill -9 $$", "", Undelivered{Refused: 2}, 2, "it ended with signal: killed"},
		"hangs":       {"echo a >> $0.log; sleep 1000 & echo $! > $0.pid; wait", ",timeout=300ms", Undelivered{Refused: 2}, 2, "it was killed after 300ms"},
		"doesn't end": {"echo a >> $0.log; sleep 1000 & echo $! > $0.pid; wait", "", Undelivered{Left: 2}, 1, ""},
		"leaves some": {"echo a >> $0.log; sleep 3 &", "", Undelivered{}, 2, ""},
		"says much":   {"echo a >> $0.log; yes | head -c 1000000 >&2; yes | head -c 1000000", "", Undelivered{}, 2, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := script(t, strings.ReplaceAll(test.script, "$0", `"$0"`))
			s, said := open(t, "exec="+path+test.options)
			s.Send(numbered(t, 1))
			s.Send(numbered(t, 2))
			missing := s.Close()
			got := Undelivered{}
			if len(missing) > 0 {
				got = missing[0]
			}
			if test.want.Sink = got.Sink; got != test.want {
				t.Errorf("not delivered: %+v", got)
			}
			if runs := lines(path + ".log"); runs != test.runs {
				t.Errorf("%d runs", runs)
			}
			if all := said.all(); test.note == "" && all != nil || test.note != "" && (len(all) == 0 || all[0] != "sink exec="+path+": "+test.note) {
				t.Errorf("%q", all)
			}
			if pid, err := os.ReadFile(path + ".pid"); err == nil {
				eventually(t, "what it started has ended", func() bool {
					stat, err := os.ReadFile("/proc/" + strings.TrimSpace(string(pid)) + "/stat")
					return err != nil || strings.Contains(string(stat), ") Z ")
				})
			}
		})
	}
}
