package drops

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"bpfnet/bpf"
	"bpfnet/internal/datapath"
	"bpfnet/internal/netns"
	"bpfnet/internal/traffic"
)

// Engine is what a Reader reads from.
type Engine interface {
	datapath.API
	// InNetNS runs fn in the engine's network namespace.
	InNetNS(fn func() error) error
	// Missed is how often the programs of an instance weren't run.
	Missed(instance string) (uint64, error)
}

// Reader is the Sampler of a loaded instance. It opens the maps for each sample, so
// that it follows an instance that is replaced.
type Reader struct {
	engine    Engine
	instance  string
	boot      time.Time // when CLOCK_BOOTTIME was 0; the same for all samples, so that the times of an entry are, too
	names     map[uint32]string
	locations map[uint64]string // "": it has no name
}

// NewReader returns a Sampler for a loaded instance of drops, for one goroutine. It
// doesn't touch the kernel before the first sample.
func NewReader(engine Engine, instance string) *Reader {
	return &Reader{engine: engine, instance: instance, locations: map[uint64]string{}}
}

// Sample implements Sampler.
func (r *Reader) Sample(ctx context.Context) (Sample, error) {
	if err := r.prepare(); err != nil {
		return Sample{}, err
	}
	attachments, err := r.engine.Attachments(ctx, r.instance)
	if err != nil {
		return Sample{}, err
	}
	s := Sample{
		Time: time.Now(), Attached: slices.ContainsFunc(attachments, func(a datapath.Attachment) bool { return !a.Defunct }),
		Entries: map[Key]Entry{}, Reasons: map[uint32]Counters{}, Names: r.names, Locations: map[uint64]string{},
	}
	for _, read := range []func(context.Context, *Sample) error{r.readHost, r.readRows, r.readEntries, r.readReasons, r.readMissed} {
		if err := read(ctx, &s); err != nil {
			return Sample{}, err
		}
	}
	r.locate(&s)
	return s, nil
}

// prepare reads what stays the same.
func (r *Reader) prepare() (err error) {
	if r.names != nil {
		return nil
	}
	var up unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &up); err != nil {
		return fmt.Errorf("read the clock: %w", err)
	}
	r.boot = time.Now().UTC().Round(0).Add(-time.Duration(up.Nano()))
	r.names, err = reasonNames()
	return err
}

func (r *Reader) readHost(_ context.Context, s *Sample) error {
	return r.engine.InNetNS(func() error {
		inode, err := netns.Inode("")
		s.Host = uint32(inode)
		return err
	})
}

func (r *Reader) readMissed(_ context.Context, s *Sample) (err error) {
	s.Missed, err = r.engine.Missed(r.instance)
	return err
}

func (r *Reader) readRows(ctx context.Context, s *Sample) error {
	return datapath.WalkMap(ctx, r.engine, r.instance, "drop_rows", func(key, value []byte) error {
		switch bpf.DropRow(binary.NativeEndian.Uint32(key)) {
		case bpf.DropsMade:
			s.Made = sum(value, 8, 0)
		case bpf.DropsNoRoom:
			s.NoRoom = sum(value, 8, 0)
		}
		return nil
	})
}

// readEntries reads keys of bpf.DropKey and values of bpf.DropEntry.
func (r *Reader) readEntries(ctx context.Context, s *Sample) error {
	return datapath.WalkMap(ctx, r.engine, r.instance, "drop_entries", func(key, value []byte) error {
		field := binary.NativeEndian.Uint64
		name, _, _ := bytes.Cut(value[32:48], []byte{0})
		s.Entries[keyOf(key)] = Entry{Counters{field(value), field(value[8:])}, string(name), r.time(field(value[16:])), r.time(field(value[24:]))}
		return nil
	})
}

func keyOf(key []byte) Key {
	wide, word, half := binary.NativeEndian.Uint64, binary.NativeEndian.Uint32, binary.NativeEndian.Uint16
	k := Key{
		Location: wide(key[32:]), CgroupID: wide(key[40:]), Reason: word(key[48:]), NetNS: word(key[52:]), IfIndex: word(key[56:]),
		Socket: word(key[60:]), SocketNetNS: word(key[64:]), EtherType: half(key[72:]), Protocol: key[74],
	}
	switch bpf.DropWay(key[75]) {
	case bpf.DropIngress:
		k.Direction = Ingress
	case bpf.DropEgress:
		k.Direction = Egress
	}
	if !bytes.Equal(key[:32], make([]byte, 32)) {
		k.Source = netip.AddrPortFrom(traffic.ReadAddress(key), half(key[68:]))
		k.Destination = netip.AddrPortFrom(traffic.ReadAddress(key[16:]), half(key[70:]))
	}
	return k
}

func (r *Reader) readReasons(ctx context.Context, s *Sample) error {
	return datapath.WalkMap(ctx, r.engine, r.instance, "drop_reasons", func(key, value []byte) error {
		s.Reasons[binary.NativeEndian.Uint32(key)] = Counters{sum(value, 16, 0), sum(value, 16, 8)}
		return nil
	})
}

// locate names the places of a sample. The kernel's symbols are read when there is a
// new one.
func (r *Reader) locate(s *Sample) {
	var fresh []uint64
	for key := range s.Entries {
		if _, known := r.locations[key.Location]; !known && !slices.Contains(fresh, key.Location) {
			fresh = append(fresh, key.Location)
		}
	}
	if len(fresh) > 0 {
		found, _ := locate(fresh) // without, they have no names
		for _, address := range fresh {
			r.locations[address] = found[address]
		}
	}
	for key := range s.Entries {
		if name := r.locations[key.Location]; name != "" {
			s.Locations[key.Location] = name
		}
	}
}

// time is a time of CLOCK_BOOTTIME.
func (r *Reader) time(ns uint64) time.Time { return r.boot.Add(time.Duration(ns)) }

// sum adds up the numbers at an offset of the values that all CPUs have.
func sum(perCPU []byte, size, at int) (total uint64) {
	for value := range slices.Chunk(perCPU, size) {
		total += binary.NativeEndian.Uint64(value[at:])
	}
	return total
}
