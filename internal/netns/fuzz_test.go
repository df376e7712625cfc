package netns

import (
	"errors"
	"strings"
	"testing"

	"bpfnet/internal/fault"
)

// FuzzResolve: whatever --netns is given, it is a namespace or refused; a name
// never leads out of the directory of names.
func FuzzResolve(f *testing.F) {
	for _, seed := range []string{"1", "", "..", ".", "\x00", "/proc/self/ns/net", "/proc/self/ns/mnt", "container:x", "99999999999", "-1", "/", "self", strings.Repeat("x", 300)} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, ref string) {
		path, err := Resolve(ref)
		if err == nil && !strings.Contains(ref, "/") && path != "/proc/"+ref+"/ns/net" && path != namedDir+"/"+ref {
			t.Errorf("%q is %q", ref, path)
		}
		if err != nil && path != "" {
			t.Errorf("%q is %q and %v", ref, path, err)
		}
		if errors.Is(err, fault.ErrNotFound) && len(fault.Hints(err)) == 0 {
			t.Errorf("%q: %v has no hint", ref, err)
		}
	})
}
