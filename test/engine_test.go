package test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"bpfnet/internal/testkit"
)

// engine is a container engine of test/engines in a network namespace of its own,
// whose containers have their cgroups below one of the test's.
type engine struct {
	*testing.T
	packages  string // what test/engines prints
	dir       string // state
	namespace string
	cgroup    string   // "/bn1-2"
	root      string   // bpffs directory
	env       []string // of the engine's commands
	sockets   []string // flags of bpfnet
}

// packages runs test/engines.
var packages = sync.OnceValues(func() (string, error) {
	cmd := exec.Command("./engines")
	stderr := &bytes.Buffer{}
	cmd.Stderr = stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%w\n%s", err, stderr)
	}
	return strings.TrimSpace(string(out)), err
})

// needsPackages skips the test if there are none, and returns their folder.
func needsPackages(t *testing.T) string {
	t.Helper()
	folder, err := packages()
	if err != nil {
		t.Skipf("Debian's packages of container engines can't be fetched: %v", err)
	}
	return folder
}

// newEngine skips the test if the packages can't be fetched.
func newEngine(t *testing.T) engine {
	t.Helper()
	testkit.NeedsKernel(t)
	e := engine{T: t, packages: needsPackages(t), dir: filepath.Join(t.TempDir(), testkit.Name(t))}
	if err := os.Mkdir(e.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	e.root = testkit.Root(t)
	e.namespace = filepath.Base(testkit.NetNS(t))
	e.cgroup = "/" + filepath.Base(testkit.Cgroup(t))
	e.env = []string{
		"PATH=" + e.path(),
		"LD_LIBRARY_PATH=" + e.packages + "/lib",
	}
	t.Cleanup(e.clear)
	return e
}

func (e engine) path() string { return e.packages + "/bin:" + os.Getenv("PATH") }

// command returns a command that finds those of the packages.
func (e engine) command(name string, args ...string) *exec.Cmd {
	return exec.Command("env", slices.Concat(e.env, []string{name}, args)...)
}

// within returns a command that runs in the engine's network namespace.
func (e engine) within(name string, args ...string) *exec.Cmd {
	return e.command("nsenter", append([]string{"--net=/run/netns/" + e.namespace, "--", name}, args...)...)
}

// write writes a file below dir; in its text DIR stands for that, and PACKAGES for
// where the packages are.
func (e engine) write(name, text string) {
	e.Helper()
	name = filepath.Join(e.dir, name)
	err := os.MkdirAll(filepath.Dir(name), 0o755)
	if err == nil {
		err = os.WriteFile(name, []byte(strings.NewReplacer("DIR", e.dir, "PACKAGES", e.packages).Replace(text)), 0o644)
	}
	if err != nil {
		e.Fatal(err)
	}
}

// run runs a command and returns what it prints.
func (e engine) run(cmd *exec.Cmd) string {
	e.Helper()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		e.Fatalf("%q: %v\n%s%s", cmd.Args, err, out, &stderr)
	}
	return strings.TrimSpace(string(out))
}

// start starts a daemon, waits until it is ready, and ends it with the test.
func (e engine) start(daemon *exec.Cmd, ready func() error) {
	e.Helper()
	log := &bytes.Buffer{}
	daemon.Stdout, daemon.Stderr = log, log
	if err := daemon.Start(); err != nil {
		e.Fatal(err)
	}
	e.Cleanup(func() {
		_ = daemon.Process.Signal(os.Interrupt)
		_ = daemon.Wait()
		if e.Failed() {
			e.Logf("%q:\n%s", daemon.Args, log)
		}
	})
	e.soon("the daemon answers", ready)
}

// soon waits until something has no error.
func (e engine) soon(what string, try func() error) {
	e.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			e.Fatalf("%s: not in 30 s: %v", what, err)
		}
	}
}

// image makes an archive, which all engines load, with an image of busybox that
// sleeps.
func (e engine) image() string {
	e.Helper()
	script := `
mkdir -p "$0/image/rootfs/bin" "$0/image/rootfs/etc" "$0/image/rootfs/tmp"
cd "$0/image"
cp "$1/bin/busybox" rootfs/bin
for name in sh sleep nc wc head ip; do ln -s busybox rootfs/bin/$name; done
tar -C rootfs -cf layer.tar .
layer=sha256:$(sha256sum <layer.tar | cut -d' ' -f1)
jq -nc --arg layer "$layer" --arg arch "$(dpkg --print-architecture)" '{
	architecture: $arch, os: "linux", rootfs: {type: "layers", diff_ids: [$layer]},
	config: {Env: ["PATH=/bin"], Entrypoint: ["sleep", "600"]}}' >config.json
echo '[{"Config": "config.json", "RepoTags": ["docker.io/library/sleeper:1"], "Layers": ["layer.tar"]}]' >manifest.json
tar -cf "$0/image.tar" manifest.json config.json layer.tar`
	e.run(exec.Command("bash", "-euc", script, e.dir, e.packages))
	return filepath.Join(e.dir, "image.tar")
}

// clear takes away what engines leave: mounts, and cgroups of all hierarchies.
func (e engine) clear() {
	script := `
awk -v dir="$0/" 'index($5, dir) == 1 { print $5 }' /proc/self/mountinfo | sort -r | xargs -r umount -l
# Who is ending may be in them for a moment.
awk -F ' - ' '$2 ~ /^cgroup2? / { split($1, f, " "); print f[5] }' /proc/self/mountinfo | while read -r mount; do
	for i in {1..100}; do
		[ -d "$mount$1" ] && ! find "$mount$1" -depth -type d -exec rmdir {} + 2>/dev/null || break
		sleep 0.1
	done
done`
	if out, err := exec.Command("bash", "-c", script, e.dir, e.cgroup).CombinedOutput(); err != nil {
		e.Errorf("clean up: %v\n%s", err, out)
	}
}

// bpfnet returns a command line that runs on the engine's host.
func (e engine) bpfnet(args ...string) *exec.Cmd {
	cmd := exec.Command(binary, slices.Concat([]string{"--netns", e.namespace}, e.sockets, args)...)
	cmd.Env = append(os.Environ(), "BPFNET_BPFFS="+e.root)
	return cmd
}
