package ports

import "bpfnet/internal/datapath"

// Filter is the API of a loaded instance.
type Filter struct {
	api      datapath.API
	instance string
}

// NewFilter returns the API of a loaded instance of port-filter. It doesn't
// touch the kernel before the first call.
func NewFilter(api datapath.API, instance string) *Filter {
	return &Filter{api: api, instance: instance}
}
