// Package datapath loads programs, attaches them to hooks, takes them off again
// and reads back from the kernel what is where. It is the only importer of
// cilium/ebpf's link package. State is kept by package pinned.
package datapath

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"bpfnet/internal/fault"
	"bpfnet/internal/maps"
	"bpfnet/internal/netns"
	"bpfnet/internal/probe"
	"bpfnet/pinned"
)

// DefaultLockTimeout is how long a command waits for another one.
const DefaultLockTimeout = pinned.DefaultLockTimeout

// Engine implements API against the kernel.
type Engine struct {
	root    pinned.Root
	netns   string
	timeout time.Duration
	memory  memory
}

var _ API = (*Engine)(nil)

// Open checks where bpffs is and returns an engine. Nothing is changed, unless
// options.Mount asks for bpffs to be mounted.
func Open(options Options) (*Engine, error) {
	e := &Engine{root: pinned.Root(options.Root), netns: options.NetNS, timeout: options.LockTimeout}
	if e.root == "" {
		e.root = pinned.DefaultRoot
	}
	if e.timeout == 0 {
		e.timeout = DefaultLockTimeout
	}
	if options.Mount {
		if err := pinned.Mount(); err != nil {
			return nil, err
		}
	}
	return e, nil
}

// write runs fn in the engine's namespace while it holds the exclusive lock.
func (e *Engine) write(ctx context.Context, fn func() error) error {
	unlock, err := e.root.Lock(ctx, e.timeout)
	if err != nil {
		return err
	}
	defer unlock()
	if err := context.Cause(ctx); err != nil {
		return err
	}
	return fault.Join(netns.Do(e.netns, fn), e.dropUnusedShared())
}

// plan is write for a request that changes nothing: a dry run must not even
// make the root.
func (e *Engine) plan(ctx context.Context, fn func() error) error {
	if err := e.root.Check(); err != nil {
		return err
	}
	return e.read(ctx, fn)
}

func (e *Engine) read(ctx context.Context, fn func() error) error {
	unlock, err := e.root.LockShared(ctx, e.timeout)
	if err != nil {
		return err
	}
	defer unlock()
	return netns.Do(e.netns, fn)
}

func (e *Engine) change(ctx context.Context, dryRun bool, fn func() error) error {
	if dryRun {
		return e.plan(ctx, fn)
	}
	return e.write(ctx, fn)
}

// Update runs fn while it holds the exclusive lock.
func (e *Engine) Update(ctx context.Context, fn func() error) error { return e.write(ctx, fn) }

// InNetNS runs fn in the engine's namespace, without a lock.
func (e *Engine) InNetNS(fn func() error) error { return netns.Do(e.netns, fn) }

// OpenMap opens a pinned map of an instance. readOnly asks for a descriptor that
// can't write.
func (e *Engine) OpenMap(instance, name string, readOnly bool) (*ebpf.Map, error) {
	if err := e.mustExist(instance); err != nil {
		return nil, err
	}
	path := e.root.Path(instance, pinned.Maps, name)
	m, err := ebpf.LoadPinnedMap(path, &ebpf.LoadPinOptions{ReadOnly: readOnly})
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil, fault.New(fault.ErrNotFound, "open map %s/%s: %q has no such map", instance, name, instance)
	case err != nil:
		return nil, fmt.Errorf("open map %s/%s: %w", instance, name, e.openError(instance, path, "map", err))
	}
	return m, nil
}

// ReadMap opens a pinned map of a loaded instance for fn.
func ReadMap(api API, instance, name string, fn func(*ebpf.Map) error) error {
	m, err := api.OpenMap(instance, name, true)
	if err != nil {
		return err
	}
	defer m.Close()
	if err := fn(m); err != nil {
		return fmt.Errorf("read %s/%s: %w", instance, name, err)
	}
	return nil
}

// WalkMap calls fn with each entry of a pinned map of a loaded instance.
func WalkMap(ctx context.Context, api API, instance, name string, fn func(key, value []byte) error) error {
	return ReadMap(api, instance, name, func(m *ebpf.Map) error { return maps.Walk(ctx, m, fn) })
}

func (e *Engine) mustExist(name string) error {
	if err := e.root.Check(); err != nil {
		return err
	}
	if name != "" && e.root.Exists(name) {
		return nil
	}
	return e.notLoaded(name)
}

func (e *Engine) notLoaded(name string) error {
	err := fault.New(fault.ErrNotFound, "no loaded program %q", name)
	names, unreadable := e.root.Names()
	if unreadable != nil {
		return unreadable // whether it is there can't be known
	}
	if _, ok := lookupBuiltin(name); ok {
		return err.Hint("bpfnet load %s", name)
	}
	if len(names) > 0 {
		return err.Hint("loaded: %s", join(names))
	}
	return err.Hint("nothing is loaded; `bpfnet programs` lists what can be")
}

// EnableStats makes the kernel count runs and run time of every program until
// stop is called.
func (e *Engine) EnableStats() (stop func() error, err error) {
	stats, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	if err != nil {
		return nil, fmt.Errorf("enable program statistics: %w", probe.Explain(probe.OpEnableStats, err))
	}
	return stats.Close, nil
}
