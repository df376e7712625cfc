package commands

import (
	"context"

	"bpfnet/internal/holders"
	"bpfnet/internal/maps"
)

func (f *fakeMaps) CountEntries(_ context.Context, all []maps.Map) ([]string, error) {
	for i, m := range all {
		if known, err := f.find(m.Ref); err == nil && m.Type != "ringbuf" {
			fill := uint64(len(known.entries))
			all[i].Fill = &fill
		}
	}
	return []string{"another note"}, nil
}

func (f *fakeMaps) FindProcesses(_ context.Context, all []maps.Map) ([]string, error) {
	for i := range all {
		all[i].Processes = []holders.Process{}
	}
	all[0].Processes = []holders.Process{{PID: 812, Command: "agent"}, {PID: 900, Command: "cilium"}}
	return nil, nil
}
