package flow

import (
	"slices"
	"time"

	"bpfnet/internal/endpoint"
	"bpfnet/internal/sockets"
)

// owners says which processes have sockets open. What it has read is kept: only
// processes that are new are looked at, all of them now and then.
type owners struct {
	held   map[int]*holder
	by     map[uint32][]*holder // by the socket's inode, sorted by pid
	looked time.Time            // at all of them, the last time
	took   time.Duration
}

// holder is a process that was looked at.
type holder struct {
	Process
	inodes []uint32 // of its sockets
}

// relook is the time after which all processes are looked at again, since sockets are
// also handed on. Where one is asked for that isn't known it is sooner, but looks take
// at most one part in looks of all time.
const (
	relook = 10 * time.Second
	looks  = 20
)

// update looks at new processes, and at all of them if it is time to, or one may have
// one of some sockets that isn't known. It says whether it has looked at all.
func (o *owners) update(pids []int, asked func(known func(inode uint32) bool) bool) (all, changed bool) {
	changed = o.look(pids)
	known := func(inode uint32) bool { return len(o.by[inode]) > 0 }
	age := time.Since(o.looked)
	if age < relook && (age < looks*o.took || !asked(known)) {
		return false, changed
	}
	began := time.Now()
	o.held = nil
	o.look(pids)
	o.looked, o.took = time.Now(), time.Since(began)
	return true, true
}

// look looks at the processes that aren't known, and forgets those that are gone. It
// says whether there were such.
func (o *owners) look(pids []int) (changed bool) {
	held := make(map[int]*holder, len(pids))
	for _, pid := range pids {
		h := o.held[pid]
		if h == nil {
			h, changed = readHolder(pid), true
		}
		held[pid] = h
	}
	if len(o.held) == len(held) && !changed {
		return false
	}
	o.held, o.by = held, map[uint32][]*holder{}
	for _, pid := range pids {
		for _, inode := range held[pid].inodes {
			o.by[inode] = append(o.by[inode], held[pid])
		}
	}
	return true
}

// readHolder reads the sockets of a process. One that has ended, or may not be looked
// into, has none.
func readHolder(pid int) *holder {
	h := &holder{}
	dir, err := endpoint.OpenProcess(pid)
	if err != nil {
		return h
	}
	defer dir.Close()
	_ = sockets.Descriptors(dir, func(_ string, inode uint32) { h.inodes = append(h.inodes, inode) })
	if len(h.inodes) == 0 {
		return h
	}
	slices.Sort(h.inodes)
	h.inodes = slices.Compact(h.inodes)
	p, alive := dir.Process(pid, time.Unix(0, 0)) // so Start is the time since the boot
	uid, ok := dir.UID()
	if !alive || !ok {
		h.inodes = nil
	}
	h.Process = Process{PID: uint32(pid), Start: uint64(p.Start.UnixNano()), Command: p.Command, UID: uid}
	return h
}
