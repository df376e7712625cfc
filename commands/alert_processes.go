package commands

import (
	"context"
	"fmt"

	"bpfnet/internal/alert"
	"bpfnet/internal/blocklist"
	"bpfnet/internal/datapath"
	"bpfnet/internal/sockets"
)

// alertProcesses says which processes alerts are about. That something can't be told
// is a note, once.
type alertProcesses struct {
	sockets sockets.API // nil: no process can be told
	devices *deviceNames
	note    func(string)
	told    bool
	missed  int
}

func newAlertProcesses(b Backend, devices *deviceNames, note func(string)) *alertProcesses {
	a := &alertProcesses{devices: devices, note: note}
	found, err := b.Sockets()
	if err != nil {
		a.tell(err)
		return a
	}
	a.sockets = found
	return a
}

// mostWaiting is how many events may come while the processes of others are looked for.
const mostWaiting = 16

// of returns the process of each event, nil where it isn't known.
func (a *alertProcesses) of(ctx context.Context, events []blocklist.Event, source blocklist.EventSource) []*alert.Process {
	processes := make([]*alert.Process, len(events))
	if a.sockets == nil || len(events) == 0 {
		return processes
	}
	packets := make([]sockets.Packet, len(events))
	for i, e := range events {
		packets[i] = a.packet(ctx, e)
	}
	before := source.Waiting()
	answer, err := a.sockets.Find(packets, func() bool { return source.Waiting()-before > mostWaiting })
	a.missed += answer.Missed
	if err != nil {
		a.tell(err)
	}
	for i, p := range answer.Processes {
		if p != nil {
			processes[i] = &alert.Process{PID: p.PID, StartTime: p.Start, Executable: p.Executable, Command: p.Command, Owners: p.Owners}
		}
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
	a.devices.of(ctx, e) // which may have to be read
	if p.NetNS = a.devices.netns[e.IfIndex]; p.NetNS == 0 {
		return sockets.Packet{}
	}
	return p
}

func (a *alertProcesses) tell(err error) {
	if !a.told {
		a.note(fmt.Sprintf("processes of alerts are not all known: %v", err))
	}
	a.told = true
}

// conclude says how many alerts couldn't wait for their process.
func (a *alertProcesses) conclude() {
	if a.missed > 0 {
		a.note(fmt.Sprintf("alerts without a process, as there was no time to look for it: %d", a.missed))
	}
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
