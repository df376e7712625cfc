package probe

import (
	"strings"
	"testing"
)

// FuzzMounts: the mount point that is found is that of a cgroup2 line.
func FuzzMounts(f *testing.F) {
	f.Add("35 24 0:30 / /sys/fs/cgroup rw shared:9 - cgroup2 cgroup2 rw\n")
	f.Add("1 2 3 / /a\\040b\\134 - cgroup2 \n - cgroup2 \nx")
	f.Add("1 2 3 / /long " + strings.Repeat("x", 1<<17) + " - overlay o o\n35 24 0:30 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
	f.Fuzz(func(t *testing.T, text string) {
		dir, _, err := cgroup2Mount(strings.NewReader(text))
		if err == nil && (dir == "" || !strings.Contains(text, " - cgroup2 ")) {
			t.Errorf("found %q in %q", dir, text)
		}
		if strings.Contains(text, "/sys/fs/cgroup rw - cgroup2 cgroup2 rw") && err != nil && strings.Contains(text, "/long ") {
			t.Error(err)
		}
	})
}
