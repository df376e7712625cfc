package endpoint

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"bpfnet/internal/fault"
)

// ticksPerSecond is the unit of times in /proc (USER_HZ).
const ticksPerSecond = 100

// process is what /proc says of a process.
type process struct {
	pid        int
	start      uint64 // in ticks since boot: with it a pid that is used again is another process
	command    string
	executable string // "" if it may not be read, or there is none
	netns      uint64 // inode; 0 if it may not be read
	closed     bool   // this user may not look into it
	membership
}

// ProcessDir is a directory of /proc. It stays that of the process: when that has
// ended, reading fails, whoever has the pid then.
type ProcessDir int

// OpenProcess opens the directory of a process; close it when done.
func OpenProcess(pid int) (ProcessDir, error) {
	fd, err := unix.Open("/proc/"+strconv.Itoa(pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	return ProcessDir(fd), err
}

// Close closes the directory.
func (d ProcessDir) Close() { _ = unix.Close(int(d)) }

func (d ProcessDir) read(name string) (string, error) {
	fd, err := unix.Openat(int(d), name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	text := make([]byte, 0, 1024)
	for {
		text = slices.Grow(text, 512)
		n, err := unix.Read(fd, text[len(text):cap(text)])
		if err != nil {
			return "", err
		}
		if n == 0 {
			return string(text), nil
		}
		text = text[:len(text)+n]
	}
}

// Link is what a link in the directory leads to, such as "exe".
func (d ProcessDir) Link(name string) (string, error) {
	target := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(d), name, target)
	if err != nil {
		return "", err
	}
	if n == 0 { // so Linux 5.10 refuses links to namespaces
		return "", unix.EACCES
	}
	return string(target[:n]), nil
}

// readProcess reads a process. It is false for one that has ended.
func readProcess(pid int) (p process, alive bool, err error) {
	dir, err := OpenProcess(pid)
	if err != nil {
		return p, false, unlessGone(err)
	}
	defer dir.Close()
	stat, err := dir.read("stat")
	if err != nil {
		return p, false, unlessGone(err)
	}
	cgroups, err := dir.read("cgroup")
	if err != nil {
		return p, false, unlessGone(err)
	}
	p, alive = parseStat(stat)
	p.pid, p.membership = pid, parseCgroups(cgroups)
	if !alive {
		return p, false, nil
	}
	return p, true, p.look(dir)
}

// look reads what not everybody may read.
func (p *process) look(dir ProcessDir) error {
	namespace, err := dir.Link("ns/net")
	if p.pid == os.Getpid() {
		namespace, err = os.Readlink(p.netnsPath())
	}
	if err == nil {
		p.netns, err = strconv.ParseUint(strings.Trim(namespace, "net:[]"), 10, 64)
	}
	if isDenied(err) {
		p.closed = true
		return nil
	}
	if err != nil {
		return unlessGone(err)
	}
	p.executable, err = dir.Link("exe") // a thread of the kernel has none
	p.closed = isDenied(err)
	return nil
}

// Executable is the path of what a process runs, in its own mount namespace; "" if it
// has ended, or this user may not read it. start is when it began, in nanoseconds of
// CLOCK_BOOTTIME: another process may have its number.
func Executable(pid uint32, start uint64) string {
	dir, err := OpenProcess(int(pid))
	if err != nil {
		return ""
	}
	defer dir.Close()
	stat, err := dir.read("stat")
	if p, alive := parseStat(stat); err != nil || !alive || p.start != start/uint64(time.Second/ticksPerSecond) {
		return ""
	}
	path, err := dir.Link("exe")
	if err != nil {
		return ""
	}
	return path
}

// netnsPath is where the network namespace of the process is opened. Our own first
// thread, which stands for us, may be the one that netns.Do left in another one.
func (p *process) netnsPath() string {
	if p.pid == os.Getpid() {
		return "/proc/thread-self/ns/net"
	}
	return fmt.Sprintf("/proc/%d/ns/net", p.pid)
}

// parseStat reads /proc/PID/stat: "812 (name) S 1 …", where the name may have
// blanks and brackets in it. It is false for what has ended.
func parseStat(text string) (p process, alive bool) {
	from, to := strings.IndexByte(text, '('), strings.LastIndexByte(text, ')')
	if from < 0 || to < from {
		return p, false
	}
	const start = 19 // behind the name
	fields := strings.Fields(text[to+1:])
	if len(fields) <= start || fields[0] == "Z" || fields[0] == "X" {
		return p, false
	}
	var err error
	p.command = text[from+1 : to]
	p.start, err = strconv.ParseUint(fields[start], 10, 64)
	return p, err == nil
}

// same says whether the process is still there.
func (p *process) same() bool {
	now, alive, err := readProcess(p.pid)
	return err == nil && alive && now.start == p.start
}

// unlessGone is nil for an error that means that a process has ended.
func unlessGone(err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

func isDenied(err error) bool { return errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) }

// readProcesses reads all processes of /proc, sorted by their age, and counts those
// that are hidden from this user. Threads aren't in it, and neither is what ends
// meanwhile.
func readProcesses() (found []*process, hidden int, err error) {
	pids, err := listPIDs()
	if err != nil {
		return nil, 0, fmt.Errorf("read processes: %w", err)
	}
	for _, pid := range pids {
		p, alive, err := readProcess(pid)
		switch {
		case isDenied(err):
			hidden++
		case err != nil:
			return nil, 0, fmt.Errorf("read process %d: %w", pid, err)
		case alive:
			found = append(found, &p)
		}
	}
	slices.SortFunc(found, compareAge)
	return found, hidden, nil
}

// listPIDs lists the processes in the order of their numbers.
func listPIDs() ([]int, error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	var pids []int
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return pids, err
}

// Leader returns the process that a thread belongs to. ErrNotFound if there is no
// such thread.
func Leader(pid int) (int, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if unlessGone(err) != nil {
		return 0, fmt.Errorf("look at process %d: %w", pid, err)
	}
	for line := range bytes.Lines(status) {
		if id, ok := bytes.CutPrefix(line, []byte("Tgid:")); ok {
			return strconv.Atoi(string(bytes.TrimSpace(id)))
		}
	}
	return 0, fault.New(fault.ErrNotFound, "no process %d", pid)
}

// BootTime is when the machine started, as the kernel reckons it.
func BootTime() (time.Time, error) {
	text, err := os.ReadFile("/proc/stat")
	for line := range bytes.Lines(text) {
		if seconds, ok := bytes.CutPrefix(line, []byte("btime ")); ok {
			n, err := strconv.ParseInt(string(bytes.TrimSpace(seconds)), 10, 64)
			return time.Unix(n, 0), err
		}
	}
	return time.Time{}, fmt.Errorf("read the time of the boot: %w", errors.Join(err, errors.New("/proc/stat doesn't have it")))
}

// startedAt is the time of a start in ticks.
func startedAt(boot time.Time, ticks uint64) time.Time {
	return boot.Add(time.Duration(ticks) * (time.Second / ticksPerSecond)).UTC()
}
