package metrics

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"bpfnet/internal/blocklist"
	"bpfnet/internal/counter"
	"bpfnet/internal/datapath"
	"bpfnet/internal/endpoint"
	"bpfnet/internal/fault"
	"bpfnet/internal/peers"
	"bpfnet/internal/ports"
	"bpfnet/internal/traffic"
)

// Source is what metrics are made of.
type Source interface {
	Instances(ctx context.Context, name string) ([]datapath.Instance, error)
	PodTraffic(instance string) (traffic.Sampler, error)
	Peers(instance string) (peers.Sampler, error)
	Counters(instance string) (counter.Sampler, error)
	Ports(instance string) (ports.API, error)
	Blocklist() blocklist.API
	Endpoints() endpoint.API
	InterfaceBytes() (datapath.InterfaceBytes, error)
	InterfaceKinds(indexes []uint32) (map[uint32]string, error)
	// LostAnswers is how many responses an instance of dns found no room for.
	LostAnswers(instance string) (uint64, error)
}

// Build says which bpfnet runs.
type Build struct{ Version, Revision, Go string }

// Options of an Exporter.
type Options struct {
	Build Build
	// Most is how many interfaces and cgroups of Pods have series of their own; the
	// others share one.
	Most int
	Now  func() time.Time
	// Note tells people what they should know. It is called by one scrape at a time.
	Note func(string)
}

// Exporter makes metrics of what is loaded at the time of each scrape.
type Exporter struct {
	source Source
	Options

	turn chan struct{} // holds one token: scrapes read one after the other
	told map[string]bool

	names      *names
	pods       *pods
	endpoints  *pods                        // by what peers counts
	interfaces map[string]map[uint32]string // that are attached, with their names, by program
	hits       *hits
	compared   map[string]*comparison // by program
	errors     map[string]float64
}

// New returns an Exporter that has read nothing yet.
func New(source Source, o Options) *Exporter {
	e := &Exporter{
		source: source, Options: o, turn: make(chan struct{}, 1), told: map[string]bool{}, names: newNames(source.Endpoints()),
		pods: newPods(o.Most), endpoints: newPods(o.Most), interfaces: map[string]map[uint32]string{}, hits: newHits(), compared: map[string]*comparison{}, errors: map[string]float64{},
	}
	e.turn <- struct{}{}
	return e
}

// Begin reads everything once, so that the first scrape finds names known, and what
// was counted before is told from growth. It returns an error if nothing will ever be
// read.
func (e *Exporter) Begin(ctx context.Context) error {
	if _, err := e.source.Instances(ctx, ""); errors.Is(err, fault.ErrPermission) || errors.Is(err, fault.ErrUnsupported) {
		return err
	}
	_, err := e.scrape(ctx)
	return err
}

// scrape reads everything once.
func (e *Exporter) scrape(ctx context.Context) (*snapshot, error) {
	return e.once(ctx, func(s *snapshot) {
		loaded := e.readInstances(ctx, s)
		writeInstances(s, loaded)
		e.part(ctx, s, "interfaces", func() error { return e.readInterfaces(ctx, s, ofProgram(loaded, "xdp-counter")) })
		e.part(ctx, s, "ports", func() error { return e.readPorts(ctx, s, ofProgram(loaded, "port-filter")) })
		e.part(ctx, s, "blocklist", func() error { return e.readBlocklist(ctx, s) })
		e.part(ctx, s, "dns", func() error { return e.readDNS(s, ofProgram(loaded, "dns")) })
		var contacts map[string]peers.Sample
		e.part(ctx, s, "peers", func() (err error) {
			contacts, err = samplesOf(ctx, ofProgram(loaded, "peers"), e.source.Peers, func(string, peers.Sample) error { return nil })
			return err
		})
		// Last, as it may wait for engines.
		e.part(ctx, s, "pods", func() error { return e.readPods(ctx, s, loaded, contacts) })
	})
}

// once makes a snapshot, when no other one is made. What can't be read is left out, and
// counted.
func (e *Exporter) once(ctx context.Context, read func(*snapshot)) (*snapshot, error) {
	select {
	case <-e.turn:
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for another scrape: %w", ctx.Err())
	}
	defer func() { e.turn <- struct{}{} }()
	start, s := e.Now(), newSnapshot()
	read(s)
	s.add(buildInfo, 1, e.Build.Version, e.Build.Revision, e.Build.Go)
	s.add(scrapeSeconds, e.Now().Sub(start).Seconds())
	return s, nil
}

// readInstances returns what is loaded, and forgets what isn't any more.
func (e *Exporter) readInstances(ctx context.Context, s *snapshot) (loaded []datapath.Instance) {
	known := e.part(ctx, s, "instances", func() (err error) {
		loaded, err = e.source.Instances(ctx, "")
		return err
	})
	if known {
		e.retain(loaded)
	}
	return loaded
}

// part reads one of the sources, and says whether it could.
func (e *Exporter) part(ctx context.Context, s *snapshot, source string, read func() error) bool {
	err := ctx.Err()
	if err == nil {
		err = read()
	}
	success := 1.0
	if err != nil {
		success = 0
		e.errors[source]++
		e.note("%s: %v", source, err)
	}
	s.add(scrapeSuccess, success, source)
	s.add(scrapeErrors, e.errors[source], source)
	return err == nil
}

// mostTold bounds how many different notes are told.
const mostTold = 1000

// note tells people something once.
func (e *Exporter) note(format string, args ...any) {
	if text := fmt.Sprintf(format, args...); !e.told[text] && len(e.told) < mostTold {
		e.told[text] = true
		e.Note(text)
	}
}

// retain forgets what isn't loaded any more.
func (e *Exporter) retain(loaded []datapath.Instance) {
	names := map[string]bool{}
	for _, in := range loaded {
		names[in.Name] = true
	}
	e.pods.retain(names)
	e.endpoints.retain(names)
	keep(e.interfaces, names, func(program string) string { return program })
	keep(e.compared, names, func(program string) string { return program })
}

// ofProgram names the instances of a built-in program.
func ofProgram(loaded []datapath.Instance, program string) []string {
	var names []string
	for _, in := range loaded {
		if in.Builtin && in.Source == program {
			names = append(names, in.Name)
		}
	}
	return names
}

// each reads instances; that one was unloaded meanwhile is no error.
func each(instances []string, read func(instance string) error) error {
	var all []error
	for _, name := range instances {
		if err := read(name); err != nil && !errors.Is(err, fault.ErrNotFound) {
			all = append(all, err)
		}
	}
	return fault.Join(all...)
}

// sampler reads a loaded instance.
type sampler[S any] interface {
	Sample(ctx context.Context) (S, error)
}

// samplesOf are the samples of instances that could be read; then is called right after
// each.
func samplesOf[S any, R sampler[S]](ctx context.Context, instances []string, open func(instance string) (R, error), then func(instance string, sample S) error) (map[string]S, error) {
	samples := map[string]S{}
	return samples, each(instances, func(instance string) error {
		r, err := open(instance)
		if err != nil {
			return err
		}
		sample, err := r.Sample(ctx)
		if err != nil {
			return err
		}
		samples[instance] = sample
		return then(instance, sample)
	})
}

// readPods reads who has moved how much, and finds the names of these and of who has
// contacted others.
func (e *Exporter) readPods(ctx context.Context, s *snapshot, loaded []datapath.Instance, contacts map[string]peers.Sample) error {
	samples, failed := samplesOf(ctx, ofProgram(loaded, "pod-traffic"), e.source.PodTraffic, func(instance string, sample traffic.Sample) error {
		i := slices.IndexFunc(loaded, func(in datapath.Instance) bool { return in.Name == instance })
		return e.reconcile(s, loaded[i], sample)
	})
	gone := e.goneCgroups(samples, contacts)
	now := map[place]reading{}
	for name, sample := range samples {
		writeUnattributed(s, name, sample)
		maps.Copy(now, placesOf(name, sample, gone))
	}
	connections := map[place]reading{}
	for name, sample := range contacts {
		maps.Copy(connections, placesOf(name, asTraffic(sample), gone))
	}
	places := maps.Clone(now)
	maps.Copy(places, connections)
	notes, err := e.names.find(ctx, e.Now(), places, failed == nil && contacts != nil)
	for _, text := range notes {
		e.note("%s", text)
	}
	if err != nil {
		failed = fault.Join(failed, fmt.Errorf("find Pods: %w", err))
	}
	e.pods.update(slices.Collect(maps.Keys(samples)), now)
	e.pods.write(s, now, e.names.of, writePod)
	e.endpoints.update(slices.Collect(maps.Keys(contacts)), connections)
	e.endpoints.write(s, connections, e.names.of, writeConnections)
	e.writePeers(s, contacts)
	return failed
}

// goneCgroups says which cgroups of samples have gone. Who can't tell has them as if
// they were there.
func (e *Exporter) goneCgroups(samples map[string]traffic.Sample, contacts map[string]peers.Sample) map[uint64]bool {
	ids := map[uint64]bool{}
	for _, sample := range samples {
		for key := range sample.Pods {
			if key.Point == traffic.Cgroup {
				ids[key.CgroupID] = true
			}
		}
	}
	for _, sample := range contacts {
		for key := range sample.Endpoints {
			if key.Point == traffic.Cgroup {
				ids[key.CgroupID] = true
			}
		}
	}
	if len(ids) == 0 {
		return nil
	}
	gone, err := e.source.Endpoints().GoneCgroups(slices.Collect(maps.Keys(ids)))
	if err != nil {
		e.note("cgroups that have gone are shown on: %v", err)
	}
	return gone
}

func writeUnattributed(s *snapshot, program string, sample traffic.Sample) {
	for row, c := range sample.Rows {
		labels := []string{program, string(row.Point), row.Name}
		for _, d := range []struct {
			direction      string
			bytes, packets uint64
		}{{transmit, c.TransmitBytes, c.TransmitPackets}, {receive, c.ReceiveBytes, c.ReceivePackets}} {
			s.add(unattributedBytes, float64(d.bytes), append(labels, d.direction)...)
			s.add(unattributedPackets, float64(d.packets), append(labels, d.direction)...)
		}
	}
}

func (e *Exporter) readInterfaces(ctx context.Context, s *snapshot, instances []string) error {
	return each(instances, func(instance string) error {
		sampler, err := e.source.Counters(instance)
		if err != nil {
			return err
		}
		sample, err := sampler.Sample(ctx)
		if err != nil {
			return err
		}
		before := e.interfaces[instance]
		for index, counters := range sample.Interfaces {
			device, live := sample.Devices[index]
			name, was := before[index]
			switch {
			case live, index == 0: // those beyond the size of the map
				writeInterface(s.add, instance, device, counters)
			case was:
				writeInterface(s.addLast, instance, name, counters)
			}
		}
		e.interfaces[instance] = sample.Devices
		return nil
	})
}

func writeInterface(add func(*Metric, float64, ...string), program, device string, counters counter.Classes) {
	for i, class := range counter.ClassNames() {
		kind := class.EtherType
		switch {
		case class.Truncated:
			kind = "truncated"
		case kind == "":
			kind = other
		}
		labels := []string{program, device, kind, class.Protocol, receive}
		add(interfaceBytes, float64(counters[i].Bytes), labels...)
		add(interfacePackets, float64(counters[i].Packets), labels...)
	}
}

func (e *Exporter) readPorts(ctx context.Context, s *snapshot, instances []string) error {
	return each(instances, func(instance string) error {
		api, err := e.source.Ports(instance)
		if err != nil {
			return err
		}
		listing, err := api.List(ctx)
		if err != nil {
			return err
		}
		d := ports.NewDocument(instance, ports.Result{Listing: listing}, false)
		for _, rule := range d.Rules {
			writeVerdict(s, instance, rule.Verdict, rule.Ports, rule.Counter)
		}
		for _, row := range d.Rows {
			writeVerdict(s, instance, row.Verdict, row.Row, row.Counter)
		}
		return nil
	})
}

func writeVerdict(s *snapshot, program, verdict, rule string, c ports.Counter) {
	s.add(filterBytes, float64(c.Bytes), program, verdict, rule)
	s.add(filterPackets, float64(c.Packets), program, verdict, rule)
	if verdict == "drop" {
		s.add(packetDrops, float64(c.Packets), program, rule)
	}
}

func (e *Exporter) readDNS(s *snapshot, instances []string) error {
	return each(instances, func(instance string) error {
		lost, err := e.source.LostAnswers(instance)
		if err == nil {
			s.add(lostEvents, float64(lost), instance, "dns_events")
		}
		return err
	})
}

// writeInstances writes what the kernel tells of programs and maps themselves.
func writeInstances(s *snapshot, loaded []datapath.Instance) {
	for _, in := range loaded {
		for _, a := range in.Attachments {
			how := []string{in.Name, a.Hook, a.Mechanism, text(a.Mode)}
			if a.Defunct {
				s.add(attachments, 1, append(how, "defunct")...)
				continue
			}
			s.add(attachments, 1, append(how, "attached")...)
			s.set(backendInfo, 1, how...)
		}
		for _, m := range in.Maps {
			if m.Entries != nil {
				s.add(mapEntries, float64(*m.Entries), in.Name, m.Name)
				s.add(mapCapacity, float64(m.MaxEntries), in.Name, m.Name)
			}
		}
		for _, p := range in.Programs {
			if p.RunCount != nil && p.RunTimeNS != nil {
				s.add(progRuns, float64(*p.RunCount), in.Name, p.Name)
				s.add(progSeconds, time.Duration(*p.RunTimeNS).Seconds(), in.Name, p.Name)
			}
		}
	}
}
