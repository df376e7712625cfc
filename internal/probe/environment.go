package probe

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Environment is what can be read about the machine and this process without
// trying anything.
type Environment struct {
	Kernel                  string       `json:"kernel"`   // release, as uname -r
	Machine                 string       `json:"machine"`  // as uname -m
	BPFFS                   *string      `json:"bpffs"`    // the bpffs that bpfnet's directory is on; null: none
	Cgroup2                 *string      `json:"cgroup2"`  // where cgroup2 is mounted; null: nowhere
	Lockdown                *string      `json:"lockdown"` // "none", "integrity", "confidentiality"; null: not readable
	LSMs                    []string     `json:"lsms"`     // active security modules; null: not readable
	UnprivilegedBPFDisabled *int         `json:"unprivileged_bpf_disabled"`
	JIT                     *int         `json:"jit"` // 0 off, 1 on, 2 on with debugging; null: not readable
	PerfEventParanoid       *int         `json:"perf_event_paranoid"`
	MemlockBytes            *uint64      `json:"memlock_bytes"` // soft limit; null: unlimited
	Capabilities            []Capability `json:"capabilities"`  // those of interest that are effective
	UserNamespace           bool         `json:"user_namespace"`
	Seccomp                 bool         `json:"seccomp"`
}

func environment(dir string) Environment {
	var uts unix.Utsname
	_ = unix.Uname(&uts)
	return Environment{
		Kernel:                  unix.ByteSliceToString(uts.Release[:]),
		Machine:                 unix.ByteSliceToString(uts.Machine[:]),
		BPFFS:                   found(bpffsOf(dir)),
		Cgroup2:                 found(Cgroup2Mount()),
		Lockdown:                lockdown(),
		LSMs:                    activeLSMs(),
		UnprivilegedBPFDisabled: sysctl("kernel/unprivileged_bpf_disabled"),
		JIT:                     sysctl("net/core/bpf_jit_enable"),
		PerfEventParanoid:       sysctl("kernel/perf_event_paranoid"),
		MemlockBytes:            memlock(),
		Capabilities:            Capabilities(),
		UserNamespace:           inUserNamespace(),
		Seccomp:                 underSeccomp(),
	}
}

func found(path string, err error) *string {
	if err != nil {
		return nil
	}
	return &path
}

func sysctl(name string) *int {
	text, err := os.ReadFile("/proc/sys/" + name)
	if err != nil {
		return nil
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return nil
	}
	return &n
}

// perfRestricted says whether perf events need CAP_SYS_ADMIN here.
func perfRestricted() bool {
	level := sysctl("kernel/perf_event_paranoid")
	return level != nil && *level > 2
}

// memlock returns the soft limit of locked memory in bytes, nil if there is
// none.
func memlock() *uint64 {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit); err != nil || limit.Cur == unix.RLIM_INFINITY {
		return nil
	}
	return &limit.Cur
}

// enoughMemlock is what the maps of the built-in programs fit in.
const enoughMemlock = 64 << 20

// lowMemlock says whether the limit of locked memory can be why op was refused.
func lowMemlock(op Op) bool {
	limit := memlock()
	switch op {
	case OpCreateMap, OpLoadTC, OpLoadCgroup, OpLoadXDP, OpLoadTracing, OpLoadTrampoline:
		return limit != nil && *limit < enoughMemlock && chargesMemlock()
	}
	return false
}

// chargesMemlock says whether maps and programs count as locked memory, as they
// did before Linux 5.11: then none can be made without any.
var chargesMemlock = sync.OnceValue(func() bool {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit); err != nil {
		return false
	}
	if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Max: limit.Max}); err != nil {
		return false
	}
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	_ = unix.Setrlimit(unix.RLIMIT_MEMLOCK, &limit)
	if err == nil {
		m.Close()
	}
	return errors.Is(err, unix.EPERM)
})

func memlockText() string {
	limit := memlock()
	if limit == nil {
		return "unlimited"
	}
	return fmt.Sprintf("%d KiB", *limit/1024)
}

// bpffsOf returns the nearest existing directory at or above dir, if it is on
// bpffs.
func bpffsOf(dir string) (string, error) {
	for dir = filepath.Clean(dir); ; dir = filepath.Dir(dir) {
		var fsys unix.Statfs_t
		err := unix.Statfs(dir, &fsys)
		switch {
		case err == nil && fsys.Type == unix.BPF_FS_MAGIC:
			return dir, nil
		case err == nil:
			return "", fmt.Errorf("bpffs isn't mounted on %s: %w", dir, ErrNotSupported)
		case !errors.Is(err, unix.ENOENT) || dir == "/":
			return "", fmt.Errorf("look at %s: %w", dir, err)
		}
	}
}

// Cgroup2Mount returns the directory where cgroup2 is mounted, the shortest if
// there are several.
func Cgroup2Mount() (string, error) {
	dir, _, err := Cgroup2()
	return dir, err
}

// Cgroup2 returns what Cgroup2Mount does, and which cgroup that directory is: its
// path, as /proc/PID/cgroup has paths.
func Cgroup2() (dir, cgroup string, err error) {
	file, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", "", fmt.Errorf("read mounts: %w", err)
	}
	defer file.Close()
	return cgroup2Mount(file)
}

func cgroup2Mount(mountinfo io.Reader) (dir, cgroup string, err error) {
	scanner := bufio.NewScanner(mountinfo)
	scanner.Buffer(nil, 1<<20) // a line lists all layers of an overlay
	for scanner.Scan() {
		mount, filesystem, ok := strings.Cut(scanner.Text(), " - ")
		fields := strings.Fields(mount)
		if !ok || len(fields) < 5 || !strings.HasPrefix(filesystem, "cgroup2 ") {
			continue
		}
		if at := unescapeMount(fields[4]); dir == "" || len(at) < len(dir) {
			dir, cgroup = at, unescapeMount(fields[3])
		}
	}
	if err := scanner.Err(); err != nil {
		return "", "", fmt.Errorf("read mounts: %w", err)
	}
	if dir == "" {
		return "", "", fmt.Errorf("cgroup2 isn't mounted: %w", ErrNotSupported)
	}
	return dir, cgroup, nil
}

// unescapeMount undoes the kernel's escapes of white space and backslash.
func unescapeMount(path string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(path)
}

// lockdown returns the word in brackets of "none [integrity] confidentiality".
func lockdown() *string {
	text, err := readSecurity("lockdown")
	if err != nil {
		return nil
	}
	_, rest, _ := strings.Cut(text, "[")
	mode, _, ok := strings.Cut(rest, "]")
	if !ok {
		return nil
	}
	return &mode
}

func activeLSMs() []string {
	text, err := readSecurity("lsm")
	if err != nil {
		return nil
	}
	return strings.Split(strings.TrimSpace(text), ",")
}

// readSecurity reads a file of securityfs.
func readSecurity(name string) (string, error) {
	return readFilesystem("securityfs", "/sys/kernel/security", name)
}

// readFilesystem reads a file of a filesystem that is usually mounted on dir,
// through a mount that nobody else sees where it isn't.
func readFilesystem(fstype, dir, name string) (string, error) {
	text, err := os.ReadFile(filepath.Join(dir, name))
	if !errors.Is(err, fs.ErrNotExist) {
		return string(text), err
	}
	root, err := detachedMount(fstype)
	if err != nil {
		return "", err
	}
	defer unix.Close(root)
	fd, err := unix.Openat(root, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("open %s of %s: %w", name, fstype, err)
	}
	file := os.NewFile(uintptr(fd), name)
	defer file.Close()
	content, err := io.ReadAll(file)
	return string(content), err
}

// detachedMount mounts a filesystem in no place at all; the descriptor is the
// only way to it, and closing it unmounts.
func detachedMount(fstype string) (int, error) {
	context, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("open filesystem %s: %w", fstype, err)
	}
	defer unix.Close(context)
	if err := unix.FsconfigCreate(context); err != nil {
		return -1, fmt.Errorf("configure filesystem %s: %w", fstype, err)
	}
	root, err := unix.Fsmount(context, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("mount filesystem %s: %w", fstype, err)
	}
	return root, nil
}
