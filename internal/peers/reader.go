package peers

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"bpfnet/bpf"
	"bpfnet/internal/datapath"
	"bpfnet/internal/maps"
	"bpfnet/internal/traffic"
)

// Reader is the Sampler of a loaded instance. It opens the maps for each sample, so
// that it follows an instance that is replaced.
type Reader struct {
	api      datapath.API
	instance string
	boot     time.Time      // when CLOCK_BOOTTIME was 0; the same for all samples, so that the times of an entry are, too
	before   *maps.Snapshot // the peers of the sample before; nil: there is none
}

// NewReader returns a Sampler for a loaded instance of peers, for one goroutine. It
// doesn't touch the kernel before the first sample.
func NewReader(api datapath.API, instance string) *Reader {
	return &Reader{api: api, instance: instance}
}

// Sample implements Sampler.
func (r *Reader) Sample(ctx context.Context) (Sample, error) {
	s, err := r.sample(ctx)
	if err != nil {
		r.before = nil
	}
	return s, err
}

func (r *Reader) sample(ctx context.Context) (Sample, error) {
	if err := r.readClock(); err != nil {
		return Sample{}, err
	}
	attachments, err := r.api.Attachments(ctx, r.instance)
	if err != nil {
		return Sample{}, err
	}
	s := Sample{Time: time.Now(), First: r.before == nil, Endpoints: map[traffic.Key]Connections{}, Peers: map[Key]Entry{}}
	s.Attached, s.Devices = traffic.Attached(attachments)
	for _, read := range []func(context.Context, *Sample) error{r.readRows, r.readPeers, r.readEndpoints} {
		if err := read(ctx, &s); err != nil {
			return Sample{}, err
		}
	}
	return s, nil
}

func (r *Reader) readClock() error {
	if !r.boot.IsZero() {
		return nil
	}
	var up unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &up); err != nil {
		return fmt.Errorf("read the clock: %w", err)
	}
	r.boot = time.Now().UTC().Round(0).Add(-time.Duration(up.Nano()))
	return nil
}

func (r *Reader) readRows(ctx context.Context, s *Sample) error {
	return datapath.WalkMap(ctx, r.api, r.instance, "peer_rows", func(key, value []byte) error {
		switch bpf.PeerRow(binary.NativeEndian.Uint32(key)) {
		case bpf.PeersMade:
			s.Made = sum(value, 8, 0)
		case bpf.PeersNoRoom:
			s.NoRoom = sum(value, 8, 0)
		}
		return nil
	})
}

// readPeers reads keys of bpf.PeerKey and values of bpf.PeerEntry. Most are as in the
// sample before, so they are compared as bytes.
func (r *Reader) readPeers(ctx context.Context, s *Sample) error {
	return datapath.ReadMap(r.api, r.instance, "peer_entries", func(m *ebpf.Map) error {
		if r.before == nil {
			r.before = maps.NewSnapshot(int(m.KeySize()), int(m.ValueSize()))
		}
		err := maps.Walk(ctx, m, func(key, value []byte) error {
			r.before.See(key, value, func(before []byte) {
				s.Peers[peerKey(key)] = r.entry(before, value)
			})
			return nil
		})
		r.before.Sweep(func(_, _ []byte) {})
		return err
	})
}

func peerKey(key []byte) Key {
	return Key{
		Endpoint: endpointKey(key, key[32:], key[43]), Address: traffic.ReadAddress(key[16:]),
		Port: binary.NativeEndian.Uint16(key[40:]), Protocol: key[42],
	}
}

// entry is a value, with what it was before.
func (r *Reader) entry(before, value []byte) Entry {
	field := binary.NativeEndian.Uint64
	e := Entry{Counters: counters(value), FirstSeen: r.time(field(value[24:])), LastSeen: r.time(field(value[32:]))}
	if before != nil && field(before[24:]) == field(value[24:]) {
		was := counters(before)
		e.Before = &was
	}
	return e
}

func counters(value []byte) Counters {
	field := binary.NativeEndian.Uint64
	return Counters{Attempts: field(value), Answers: field(value[8:]), Refusals: field(value[16:])}
}

// readEndpoints reads keys of bpf.EndpointKey and values of bpf.EndpointCounters.
func (r *Reader) readEndpoints(ctx context.Context, s *Sample) error {
	return datapath.WalkMap(ctx, r.api, r.instance, "peer_endpoints", func(key, value []byte) error {
		s.Endpoints[endpointKey(key, key[16:], key[24])] = Connections{Opened: sum(value, 16, 0), Received: sum(value, 16, 8)}
		return nil
	})
}

// time is a time of CLOCK_BOOTTIME.
func (r *Reader) time(ns uint64) time.Time { return r.boot.Add(time.Duration(ns)) }

// endpointKey reads an endpoint's address, place and hook.
func endpointKey(at, place []byte, hook byte) traffic.Key {
	where := binary.NativeEndian.Uint64(place)
	if bpf.PeerHook(hook) == bpf.PeerCgroup {
		return traffic.Key{Point: traffic.Cgroup, Address: traffic.ReadAddress(at), CgroupID: where}
	}
	return traffic.Key{Point: traffic.TC, Address: traffic.ReadAddress(at), IfIndex: uint32(where)}
}

// sum adds up the numbers at an offset of the values that all CPUs have.
func sum(perCPU []byte, size, at int) (total uint64) {
	for value := range slices.Chunk(perCPU, size) {
		total += binary.NativeEndian.Uint64(value[at:])
	}
	return total
}
