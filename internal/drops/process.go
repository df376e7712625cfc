package drops

import (
	"bpfnet/internal/sockets"
)

// Processes says whose sockets drops were at. It remembers whom it found.
type Processes struct {
	api   sockets.API
	found map[Key]*Process // nil: nobody was
}

// NewProcesses returns Processes that haven't looked yet.
func NewProcesses(api sockets.API) *Processes {
	return &Processes{api: api, found: map[Key]*Process{}}
}

// mostAsked is for how many drops it looks in a sample, the first ones of the document:
// a sockets.API looks for no more.
const mostAsked = 20

// Of returns the process of each drop, nil where it isn't known, and why that may be. It
// forgets those that aren't among them.
func (p *Processes) Of(shown []Shown) ([]*Process, error) {
	found := make(map[Key]*Process, len(shown))
	var asked []Key
	var packets []sockets.Packet
	for _, s := range shown {
		process, before := p.found[s.Key]
		if before {
			found[s.Key] = process
		}
		stale := s.News && (process == nil || s.Socket == 0) // a port may be another process's now
		if (!before || stale) && s.askable() && len(asked) < mostAsked {
			asked, packets = append(asked, s.Key), append(packets, s.packet())
		}
	}
	answer, err := p.api.Find(packets, nil)
	for i, process := range answer.Processes {
		switch {
		case process != nil:
			found[asked[i]] = &Process{process.PID, process.Start, process.Executable, process.Command, process.Owners}
		case answer.Missed == 0:
			found[asked[i]] = nil
		}
	}
	p.found = found
	processes := make([]*Process, len(shown))
	for i, s := range shown {
		processes[i] = found[s.Key]
	}
	return processes, err
}

// askable says whether it is known where the socket may be.
func (s Shown) askable() bool { return s.Socket != 0 || s.NetNS != 0 && s.Direction != "" }

func (s Shown) packet() sockets.Packet {
	p := sockets.Packet{
		Time: s.LastSeen, Protocol: s.Protocol, Source: s.Source, Destination: s.Destination, Ingress: s.Direction == Ingress,
		IfIndex: s.IfIndex, CgroupID: s.CgroupID, Socket: sockets.Known{NetNS: uint64(s.NetNS)},
	}
	if s.Socket != 0 {
		p.Socket = sockets.Known{NetNS: uint64(s.SocketNetNS), Inode: s.Socket}
	}
	return p
}
