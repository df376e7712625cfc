package pinned

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"bpfnet/internal/fault"
)

func testRoot(t *testing.T) Root {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it writes to bpffs")
	}
	if err := Mount(); err != nil {
		t.Skipf("needs bpffs: %v", err)
	}
	dir := filepath.Join(MountPoint, fmt.Sprintf("bn%d-pinned-%d", os.Getpid(), time.Now().UnixNano()))
	t.Cleanup(func() { os.RemoveAll(dir) })
	return Root(dir)
}

func mustLock(t *testing.T, r Root) func() {
	t.Helper()
	unlock, err := r.Lock(context.Background(), time.Second)
	if err != nil {
		t.Fatal(err)
	}
	return unlock
}

func commit(t *testing.T, r Root, name, source string) *Stage {
	t.Helper()
	s, err := r.NewStage(name, Spec{Source: source})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestEncodeIsReversibleAndHasNoDots(t *testing.T) {
	for _, name := range []string{"eth0.100", "a/b", "%2E", ".rodata", "ü", "a:b", "@x", "..", "plain"} {
		file := Encode(name)
		if Decode(file) != name {
			t.Errorf("Decode(Encode(%q)) = %q", name, Decode(file))
		}
		for _, c := range file {
			if c == '.' || c == '/' {
				t.Errorf("Encode(%q) = %q has a %q", name, file, c)
			}
		}
	}
}

func FuzzEncode(f *testing.F) {
	f.Add("eth0.100")
	f.Add("%")
	f.Fuzz(func(t *testing.T, name string) {
		if got := Decode(Encode(name)); got != name {
			t.Errorf("Decode(Encode(%q)) = %q", name, got)
		}
	})
}

func TestRefusesOtherFileSystems(t *testing.T) {
	err := Root(filepath.Join(t.TempDir(), "x")).Check()
	if !errors.Is(err, ErrNotBPFFS) || len(fault.Hints(err)) == 0 {
		t.Fatalf("got %v with hints %v", err, fault.Hints(err))
	}
	if err := Root("relative").Check(); !errors.Is(err, fault.ErrUsage) {
		t.Fatalf("got %v", err)
	}
}

func TestInstanceLifeCycle(t *testing.T) {
	r := testRoot(t)
	unlock := mustLock(t, r)
	s := commit(t, r, "one.two", "first")
	if err := s.Finish(); err != nil {
		t.Fatal(err)
	}
	stray := filepath.Join(string(r), "stray")
	if err := setNote(stray, "pinned by somebody"); err != nil {
		t.Fatal(err)
	}
	got, err := r.Names()
	if err != nil || !slices.Equal(got, []string{"one.two"}) {
		t.Fatalf("names %q, %v", got, err)
	}
	if err := os.Remove(stray); err != nil {
		t.Fatal(err)
	}
	s = commit(t, r, "one.two", "second")
	if got := r.Spec("one.two").Source; got != "second" {
		t.Fatalf("source %q", got)
	}
	if err := s.Rollback(); err != nil {
		t.Fatal(err)
	}
	if got := r.Spec("one.two").Source; got != "first" {
		t.Fatalf("source after rollback %q", got)
	}
	if err := r.Remove("one.two"); err != nil {
		t.Fatal(err)
	}
	unlock()
	if _, err := os.Stat(string(r)); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("the empty root is still there: %v", err)
	}
}

// A writer that was killed leaves directories behind. Whatever it left, the next
// one finds every instance whole.
func TestRecoversFromEveryStepOfAReplacement(t *testing.T) {
	for _, step := range []struct {
		name  string
		leave func(r Root, s *Stage) error
		want  string
	}{
		{"staged", func(Root, *Stage) error { return nil }, "first"},
		{"old moved aside", func(r Root, s *Stage) error { return os.Rename(r.Instance("x"), s.oldDir()) }, "first"},
		{"committed", func(_ Root, s *Stage) error { return s.Commit() }, "second"},
	} {
		t.Run(step.name, func(t *testing.T) {
			r := testRoot(t)
			unlock := mustLock(t, r)
			commit(t, r, "x", "first")
			s, err := r.NewStage("x", Spec{Source: "second"})
			if err != nil {
				t.Fatal(err)
			}
			if err := step.leave(r, s); err != nil {
				t.Fatal(err)
			}
			unlock()
			mustLock(t, r)()
			if got := r.Spec("x").Source; got != step.want {
				t.Errorf("source %q, want %q", got, step.want)
			}
			entries, _ := os.ReadDir(string(r))
			if len(entries) != 2 { // the instance, and the mark of the root
				t.Errorf("left over: %v", entries)
			}
		})
	}
}

// A detach that was killed leaves the target of a link whose pin is gone.
func TestRecoversFromHalfADetach(t *testing.T) {
	r := testRoot(t)
	unlock := mustLock(t, r)
	stage, err := r.NewStage("x", Spec{Source: "x", Digest: "x"})
	if err != nil {
		t.Fatal(err)
	}
	if err := stage.Commit(); err != nil {
		t.Fatal(err)
	}
	for _, set := range []struct{ kind, name string }{{Targets, "gone"}, {Targets, "there"}, {Links, "there"}} {
		if err := r.SetNote("x", set.kind, set.name, "text"); err != nil {
			t.Fatal(err)
		}
	}
	unlock()
	mustLock(t, r)()
	if targets, err := r.List("x", Targets); err != nil || !slices.Equal(targets, []string{"there"}) {
		t.Errorf("targets %q, %v", targets, err)
	}
}

func TestLockExcludesAndNamesItsHolder(t *testing.T) {
	r := testRoot(t)
	unlock := mustLock(t, r)
	defer unlock()
	_, err := r.Lock(context.Background(), 20*time.Millisecond)
	if !errors.Is(err, fault.ErrLocked) {
		t.Fatalf("got %v", err)
	}
	if want := fmt.Sprintf("process %d", os.Getpid()); !strings.Contains(err.Error(), want) {
		t.Errorf("%q doesn't name %q", err, want)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := r.Lock(ctx, time.Minute); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// Writers that make and remove the root all the time never work in a root that
// another one has just removed.
func TestLockSurvivesRemovalOfTheRoot(t *testing.T) {
	r := testRoot(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	for range 8 {
		wg.Go(func() {
			for range 20 {
				unlock, err := r.Lock(context.Background(), 10*time.Second)
				if err != nil {
					t.Error(err)
					return
				}
				if !mu.TryLock() {
					t.Error("two writers at once")
				} else {
					s, err := r.NewStage("n", Spec{})
					if err == nil {
						err = s.Commit()
					}
					if err == nil {
						err = r.Remove("n")
					}
					if err != nil {
						t.Error(err)
					}
					mu.Unlock()
				}
				unlock()
			}
		})
	}
	wg.Wait()
}

func TestMountRefusesWhatIsNotEmpty(t *testing.T) {
	if err := Mount(); err != nil && !errors.Is(err, fault.ErrPermission) && !errors.Is(err, fault.ErrConflict) {
		t.Fatal(err)
	}
}

func TestNotes(t *testing.T) {
	r := testRoot(t)
	defer mustLock(t, r)()
	commit(t, r, "x", "s")
	for _, text := range []string{`46 tcx/ingress`, `{"devname":"eth0.100"}`} {
		if err := r.SetNote("x", Sections, "f", text); err != nil {
			t.Fatal(err)
		}
		if got := r.Note("x", Sections, "f"); got != text {
			t.Errorf("note %q, want %q", got, text)
		}
	}
}

// A reader that waited for a root which was removed and made again meanwhile
// waits for the new one's lock, too.
func TestReaderFollowsTheRoot(t *testing.T) {
	r := testRoot(t)
	unlockOld := mustLock(t, r)
	read := make(chan error)
	go func() {
		_, err := r.LockShared(context.Background(), 200*time.Millisecond)
		read <- err
	}()
	time.Sleep(50 * time.Millisecond)
	if err := os.RemoveAll(string(r)); err != nil {
		t.Fatal(err)
	}
	unlockNew := mustLock(t, r)
	defer unlockNew()
	commit(t, r, "n", "s") // or unlockOld would remove the new root
	unlockOld()
	if err := <-read; !errors.Is(err, fault.ErrLocked) {
		t.Errorf("got %v", err)
	}
}

// Many objects take several reads of their directory, and one that takes the place of
// another is told from it.
func TestObjects(t *testing.T) {
	r := testRoot(t)
	defer mustLock(t, r)()
	commit(t, r, "n", "s")
	const many = 3000
	for i := range many {
		if err := r.SetNote("n", Targets, fmt.Sprintf("tcx_ingress:f.%04d", i), "text"); err != nil {
			t.Fatal(err)
		}
	}
	before, err := r.Objects("n", Targets)
	if err != nil || len(before) != many {
		t.Fatalf("%d of %d: %v", len(before), many, err)
	}
	if err := os.Remove(r.Path("n", Targets, before[7].Name)); err != nil {
		t.Fatal(err)
	}
	if err := r.SetNote("n", Targets, before[7].Name, "text"); err != nil {
		t.Fatal(err)
	}
	now, err := r.Objects("n", Targets)
	if err != nil || len(now) != many {
		t.Fatalf("%d of %d: %v", len(now), many, err)
	}
	for i, o := range now {
		if want := fmt.Sprintf("tcx_ingress:f.%04d", i); o.Name != want || (o.Inode == before[i].Inode) == (i == 7) {
			t.Fatalf("%d: %+v, was %+v", i, o, before[i])
		}
	}
	if none, err := r.Objects("n", "nothing"); err != nil || len(none) != 0 {
		t.Errorf("%v, %v", none, err)
	}
}

func TestListSaysWhatIsNotAllowed(t *testing.T) {
	err := permission("list", "/x", &fs.PathError{Op: "open", Path: "/x", Err: fs.ErrPermission})
	if !errors.Is(err, fault.ErrPermission) || err.Error() != "list /x: permission denied" {
		t.Errorf("got %v", err)
	}
}

func TestCheckName(t *testing.T) {
	for name, ok := range map[string]bool{
		"x": true, "pod-traffic": true, "eth0.100": true, "ü": true,
		"": false, "a/b": false, "-x": false, "id:5": false, "name:x": false, "tag:1": false, "@new-x": false, "a\nb": false, "\x1b[31m": false, "\xff": false,
		strings.Repeat("x", 300): false,
	} {
		if err := CheckName(name); (err == nil) != ok || err != nil && !errors.Is(err, fault.ErrUsage) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// A root that somebody made, with an owner and a mode, stays; one that was made
// here goes with the last thing in it.
func TestOnlyOurOwnRootIsRemoved(t *testing.T) {
	r := testRoot(t)
	mustLock(t, r)()
	if _, err := os.Stat(string(r)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("our own: %v", err)
	}
	if err := os.Mkdir(string(r), 0o750); err != nil {
		t.Fatal(err)
	}
	mustLock(t, r)()
	if _, err := os.Stat(string(r)); err != nil {
		t.Errorf("somebody's: %v", err)
	}
}

// Work on a group is one caller's, until it is released, and nobody waits.
func TestClaimShared(t *testing.T) {
	r := testRoot(t)
	claim := func(want bool) func() {
		t.Helper()
		release, free, err := r.ClaimShared("group")
		if err != nil || free != want {
			t.Errorf("free: %v, %v", free, err)
		}
		return release
	}
	claim(true)() // of a group that isn't there
	unlock := mustLock(t, r)
	if err := r.MakeShared("group", func(string) error { return nil }); err != nil {
		t.Fatal(err)
	}
	unlock()
	release := claim(true)
	claim(false)
	mustLock(t, r)() // the lock is another one
	release()
	claim(true)()
}
