package commands

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"strings"
	"testing"

	"bpfnet/internal/fault"
)

// TestInterruptible ends a read that waits for input when the command is
// interrupted, and reads all of an input that ends.
func TestInterruptible(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	waiting, _ := io.Pipe()
	input := interruptible(ctx, waiting)
	cancel()
	if _, err := input.Read(make([]byte, 1)); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled read: %v", err)
	}
	input = interruptible(context.Background(), strings.NewReader("all of it"))
	if data, err := io.ReadAll(input); err != nil || string(data) != "all of it" {
		t.Errorf("%q, %v", data, err)
	}
}

func TestOpenFile(t *testing.T) {
	if _, err := openFile(t.TempDir()); !errors.Is(err, fault.ErrUsage) {
		t.Errorf("a directory: %v", err)
	}
	if _, err := openFile(t.TempDir() + "/nothing"); err == nil {
		t.Error("a file that isn't there was opened")
	}
}

func TestInputErrors(t *testing.T) {
	for cause, want := range map[error]error{fs.ErrPermission: fault.ErrPermission, fs.ErrNotExist: fault.ErrNotFound} {
		e := &Env{OpenFile: func(name string) (io.ReadCloser, error) {
			return nil, &fs.PathError{Op: "open", Path: name, Err: cause}
		}}
		if _, _, err := e.input(context.Background(), "f"); !errors.Is(err, want) {
			t.Errorf("%v: %v", cause, err)
		}
	}
}
