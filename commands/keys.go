package commands

import (
	"os"
	"os/signal"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// terminalKeys has a terminal give each key as it is pressed, and not show it. Signals
// of keys stay. Whoever runs in the background of a terminal may not touch it: it isn't
// ok at first, and gets no keys as long as it is there.
func terminalKeys(fd int) (pressed <-chan byte, stop func(), ok bool) {
	before, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil || !inForeground(fd) {
		return nil, nil, false
	}
	k := keyboard{fd: fd, before: *before, quiet: *before, pressed: make(chan byte), end: make(chan struct{}), stops: make(chan os.Signal, 1)}
	k.quiet.Lflag &^= unix.ICANON | unix.ECHO
	k.quiet.Cc[unix.VMIN], k.quiet.Cc[unix.VTIME] = 1, 0
	k.set(&k.quiet)
	signal.Notify(k.stops, unix.SIGTSTP)
	var ended sync.WaitGroup
	ended.Go(k.read)
	return k.pressed, sync.OnceFunc(func() {
		signal.Stop(k.stops)
		close(k.end)
		ended.Wait()
		k.set(&k.before)
	}), true
}

// keyboard is a terminal that keys are read from.
type keyboard struct {
	fd            int
	before, quiet unix.Termios
	pressed       chan byte
	end           chan struct{}
	stops         chan os.Signal
}

// inForeground says whether a terminal is this process's to read; one that doesn't
// control it is.
func inForeground(fd int) bool {
	group, err := unix.IoctlGetInt(fd, unix.TIOCGPGRP)
	return err != nil || group == unix.Getpgrp()
}

func (k *keyboard) set(t *unix.Termios) {
	if inForeground(k.fd) {
		_ = unix.IoctlSetTermios(k.fd, unix.TCSETS, t) // it is gone
	}
}

// keyWait is how long is waited for a key before anything else is looked at.
const keyWait = 50 * time.Millisecond

func (k *keyboard) read() {
	ours := true // the terminal is, and is quiet
	for {
		select {
		case <-k.end:
			return
		case <-k.stops: // give the terminal to the shell
			k.set(&k.before)
			ours = false
			_ = unix.Kill(unix.Getpid(), unix.SIGSTOP)
		default:
		}
		if !inForeground(k.fd) {
			ours = false
			time.Sleep(keyWait)
			continue
		}
		if !ours {
			k.set(&k.quiet)
			ours = true
		}
		set := []unix.PollFd{{Fd: int32(k.fd), Events: unix.POLLIN}}
		if n, err := unix.Poll(set, int(keyWait.Milliseconds())); err != nil || n == 0 || !inForeground(k.fd) {
			continue
		}
		key := make([]byte, 1)
		if n, err := unix.Read(k.fd, key); n < 1 || err != nil {
			<-k.end // nobody can press any
			return
		}
		select {
		case k.pressed <- key[0]:
		case <-k.end:
			return
		}
	}
}
