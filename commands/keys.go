package commands

import (
	"os"
	"os/signal"
	"sync"

	"golang.org/x/sys/unix"
)

// terminalKeys has a terminal give each key as it is pressed, and not show it. Signals
// of keys stay. Whoever runs in the background of a terminal may not touch it: it isn't
// ok from the beginning, and gets no keys later.
func terminalKeys(fd int) (pressed <-chan byte, stop func(), ok bool) {
	before, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil || !inForeground(fd) {
		return nil, nil, false
	}
	k := keyboard{fd: fd, before: *before, quiet: *before, pressed: make(chan byte), end: make(chan struct{}), signals: make(chan os.Signal, 2)}
	k.quiet.Lflag &^= unix.ICANON | unix.ECHO
	k.quiet.Cc[unix.VMIN], k.quiet.Cc[unix.VTIME] = 1, 0
	k.set(&k.quiet)
	signal.Notify(k.signals, unix.SIGTSTP, unix.SIGCONT)
	var ended sync.WaitGroup
	ended.Go(k.read)
	return k.pressed, sync.OnceFunc(func() {
		signal.Stop(k.signals)
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
	signals       chan os.Signal
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
const keyWait = 50 // ms

func (k *keyboard) read() {
	for {
		select {
		case <-k.end:
			return
		case s := <-k.signals:
			k.suspend(s)
			continue
		default:
		}
		set := []unix.PollFd{{Fd: int32(k.fd), Events: unix.POLLIN}}
		if n, err := unix.Poll(set, keyWait); err != nil || n == 0 || !inForeground(k.fd) {
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

// suspend gives the terminal to the shell while the process is stopped by a key.
func (k *keyboard) suspend(s os.Signal) {
	if s == unix.SIGCONT {
		k.set(&k.quiet)
		return
	}
	k.set(&k.before)
	_ = unix.Kill(unix.Getpid(), unix.SIGSTOP)
}
