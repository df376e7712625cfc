package flow

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"bpfnet/internal/datapath"
	"bpfnet/internal/fault"
	"bpfnet/internal/testkit"
)

// Who opens an instance is told how far it counts.
func TestOpenTellsWhatIsAttached(t *testing.T) {
	ctx := context.Background()
	engine, err := datapath.Open(datapath.Options{Root: testkit.Root(t)})
	if err == nil {
		_, err = engine.Load(ctx, datapath.LoadRequest{Source: Program, Name: "mine"})
	}
	testkit.Needs(t, "loaded flows", err, fault.ErrUnsupported, fault.ErrRejected)
	attach := func(program string) {
		t.Helper()
		_, err := engine.Attach(ctx, datapath.AttachRequest{Hook: "trace", Name: "mine", Program: program})
		if err != nil {
			t.Fatal(err)
		}
	}
	told := func(want string) {
		t.Helper()
		sampler, notes, err := Open(ctx, engine, Request{Instance: "mine"})
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(notes); !strings.HasPrefix(got, want) {
			t.Errorf("%s, want %s", got, want)
		}
		if err := sampler.Close(); err != nil {
			t.Error(err)
		}
	}
	told("[]")
	attach("flows_destroy")
	told("[mine is attached in part")
	attach("")
	told("[]")
}

// There are no flows of a process that isn't there, nor of a thread.
func TestOpenOfNobody(t *testing.T) {
	ctx := context.Background()
	engine := newEngine(t)
	child := exec.Command("true")
	if err := child.Run(); err != nil {
		t.Fatal(err)
	}
	tids := make(chan int)
	go func() {
		runtime.LockOSThread()
		tids <- unix.Gettid()
		tids <- 0
	}()
	thread := <-tids
	if thread == os.Getpid() {
		t.Skip("the first thread is in use")
	}
	for _, pid := range []int{child.Process.Pid, thread} {
		for _, backend := range []string{"", Polling} {
			sampler, _, err := Open(ctx, engine, Request{Instance: "none", Backend: backend, Filter: Filter{PIDs: []uint32{uint32(pid)}}})
			if !errors.Is(err, fault.ErrNotFound) {
				t.Errorf("%d, %q: %v", pid, backend, err)
			}
			if err == nil {
				_ = sampler.Close()
			}
		}
	}
	<-tids
}
