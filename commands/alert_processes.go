package commands

import (
	"context"
	"fmt"

	"bpfnet/internal/alert"
	"bpfnet/internal/blocklist"
	"bpfnet/internal/datapath"
	"bpfnet/internal/sockets"
)

// processFinder says which processes packets are of. That something can't be told is a
// note, once.
type processFinder struct {
	sockets sockets.API // nil: no process can be told
	what    string      // has processes
	note    func(string)
	told    bool
	missed  int
}

func newProcessFinder(b Backend, what string, note func(string)) processFinder {
	f := processFinder{what: what, note: note}
	found, err := b.Sockets()
	if err != nil {
		f.tell(err)
		return f
	}
	f.sockets = found
	return f
}

// mostWaiting is how many events may come while the processes of others are looked for.
const mostWaiting = 16

// find returns the process of each packet, nil where it isn't known; waiting is how many
// events there are to read.
func (f *processFinder) find(packets []sockets.Packet, waiting func() int) []*sockets.Process {
	if f.sockets == nil || len(packets) == 0 {
		return make([]*sockets.Process, len(packets))
	}
	before := waiting()
	answer, err := f.sockets.Find(packets, func() bool { return waiting()-before > mostWaiting })
	f.missed += answer.Missed
	if err != nil {
		f.tell(err)
	}
	return answer.Processes
}

func (f *processFinder) tell(err error) {
	if !f.told {
		f.note(fmt.Sprintf("processes of %s are not all known: %v", f.what, err))
	}
	f.told = true
}

// conclude says how many couldn't wait for their process.
func (f *processFinder) conclude() {
	if f.missed > 0 {
		f.note(fmt.Sprintf("%s without a process, as there was no time to look for it: %d", f.what, f.missed))
	}
}

func newProcess(p *sockets.Process) *alert.Process {
	if p == nil {
		return nil
	}
	return &alert.Process{PID: p.PID, StartTime: p.Start, Executable: p.Executable, Command: p.Command, Owners: p.Owners}
}

// alertProcesses says which processes alerts are about.
type alertProcesses struct {
	processFinder
	devices *deviceNames
}

func newAlertProcesses(b Backend, devices *deviceNames, note func(string)) *alertProcesses {
	return &alertProcesses{newProcessFinder(b, "alerts", note), devices}
}

// of returns the process of each event, nil where it isn't known.
func (a *alertProcesses) of(ctx context.Context, events []blocklist.Event, source blocklist.EventSource) []*alert.Process {
	packets := make([]sockets.Packet, len(events))
	for i, e := range events {
		packets[i] = a.packet(ctx, e)
	}
	processes := make([]*alert.Process, len(events))
	for i, p := range a.find(packets, source.Waiting) {
		processes[i] = newProcess(p)
	}
	return processes
}

// packet is the packet of an event: one without ports, for which nothing is looked,
// where it isn't known which interface has seen it.
func (a *alertProcesses) packet(ctx context.Context, e blocklist.Event) sockets.Packet {
	p := sockets.Packet{
		Time: e.Time, Protocol: e.Protocol, Source: e.Source, Destination: e.Destination, Ingress: e.Direction == "ingress",
		IfIndex: e.IfIndex, AtCgroup: e.Hook == "cgroup", CgroupID: e.CgroupID,
	}
	if p.AtCgroup {
		return p
	}
	if p.NetNS = a.devices.netnsOf(ctx, e.IfIndex); p.NetNS == 0 {
		return sockets.Packet{}
	}
	return p
}

// netnsOf returns the inode of the namespace that an interface is in, 0 if it isn't
// known.
func (d *deviceNames) netnsOf(ctx context.Context, index uint32) uint64 {
	d.at(ctx, index) // which may have to be read
	return d.netns[index]
}

// place remembers the namespace of an attachment's interface, if no other one has one
// with that index.
func (d *deviceNames) place(a datapath.Attachment) {
	inode := uint64(0)
	if a.NetNS != nil {
		inode = *a.NetNS
	}
	if before, known := d.netns[*a.IfIndex]; known && before != inode {
		inode = 0
	}
	d.netns[*a.IfIndex] = inode
}
