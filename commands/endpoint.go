package commands

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"bpfnet/internal/endpoint"
	"bpfnet/output"
)

type endpointDoc struct {
	Schema      string           `json:"schema"`
	Kind        string           `json:"kind"`
	Pod         *endpointPod     `json:"pod"`
	Containers  []containerDoc   `json:"containers"`
	Outer       []outerDoc       `json:"outer"`
	Unit        *string          `json:"unit"`
	Slice       *string          `json:"slice"`
	Process     processDoc       `json:"process"`
	Cgroup      *string          `json:"cgroup"`
	CgroupPath  string           `json:"cgroup_path"`
	CgroupID    *string          `json:"cgroup_id"`
	NetNS       *uint64          `json:"netns"`
	NetNSCookie *string          `json:"netns_cookie"`
	HostNetwork *bool            `json:"host_network"`
	Interfaces  []innerInterface `json:"interfaces"`
}

type endpointPod struct {
	UID       string            `json:"uid"`
	Namespace *string           `json:"namespace"`
	Name      *string           `json:"name"`
	Labels    map[string]string `json:"labels"`
	QoS       *string           `json:"qos"`
	Source    string            `json:"source"`
}

type containerDoc struct {
	Engine     string            `json:"engine"`
	ID         string            `json:"id"`
	Name       *string           `json:"name"`
	Labels     map[string]string `json:"labels"`
	Source     string            `json:"source"`
	Process    processDoc        `json:"process"`
	Cgroup     *string           `json:"cgroup"`
	CgroupPath string            `json:"cgroup_path"`
	CgroupID   *string           `json:"cgroup_id"`
}

type outerDoc struct {
	Engine string  `json:"engine"`
	ID     string  `json:"id"`
	PodUID *string `json:"pod_uid"`
}

type processDoc struct {
	PID        int       `json:"pid"`
	StartTime  time.Time `json:"start_time"`
	Executable *string   `json:"executable"`
	Command    string    `json:"command"`
}

type innerInterface struct {
	DevName      *string  `json:"devname"`
	IfIndex      *int     `json:"ifindex"`
	Kind         string   `json:"kind"`
	InnerDevName *string  `json:"inner_devname"`
	InnerIfIndex int      `json:"inner_ifindex"`
	Addresses    []string `json:"addresses"`
}

func endpointCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:  "endpoint",
		Usage: "who is behind a process, a cgroup, a network namespace, an interface or an address",
		Subcommands: []*cli.Command{
			{
				Name:   "list",
				Usage:  "the containers and Pods of this machine",
				Action: env.endpointList,
			},
			{
				Name:        "show",
				Usage:       "the container, the Pod, or the process of the host behind something",
				ArgsUsage:   "REF",
				Description: "REF is one of: " + strings.Join(endpoint.Forms(), ", ") + ". The beginning of an ID is enough where no other one begins like that.",
				Action:      env.endpointShow,
			},
		},
	}
}

func (e *Env) endpointList(c *cli.Context) error {
	if err := args(c); err != nil {
		return err
	}
	return e.endpoints(c, func(api endpoint.API) (endpoint.Listing, error) { return api.List(c.Context) })
}

func (e *Env) endpointShow(c *cli.Context) error {
	if err := args(c, "REF"); err != nil {
		return err
	}
	ref, err := endpoint.ParseRef(c.Args().First())
	if err != nil {
		return err
	}
	return e.endpoints(c, func(api endpoint.API) (endpoint.Listing, error) { return api.Show(c.Context, ref) })
}

// endpoints prints what find finds.
func (e *Env) endpoints(c *cli.Context, find func(endpoint.API) (endpoint.Listing, error)) error {
	p, b, err := e.open(c)
	if err != nil {
		return err
	}
	defer b.Close()
	found, err := find(b.Endpoints())
	if err != nil {
		return err
	}
	e.notes(c, found.Notes)
	docs := []endpointDoc{}
	for _, one := range found.Endpoints {
		docs = append(docs, newEndpointDoc(one))
	}
	return p.List(docs, func() output.Table { return endpointTable(docs) })
}

func newEndpointDoc(e endpoint.Endpoint) endpointDoc {
	d := endpointDoc{
		Schema: "bpfnet.endpoint/v1", Kind: string(e.Kind), Containers: []containerDoc{}, Outer: []outerDoc{}, Unit: e.Unit, Slice: e.Slice,
		Process: newProcessDoc(e.Process), Cgroup: e.Cgroup.Dir, CgroupPath: e.Cgroup.Path, CgroupID: textOf(e.Cgroup.ID),
		NetNS: e.NetNS, NetNSCookie: textOf(e.NetNSCookie), HostNetwork: e.HostNetwork, Interfaces: newInnerInterfaces(e.Interfaces),
	}
	if p := e.Pod; p != nil {
		d.Pod = &endpointPod{UID: p.UID, Namespace: p.Namespace, Name: p.Name, Labels: p.Labels, QoS: p.QoS, Source: string(p.Source)}
	}
	for _, c := range e.Containers {
		d.Containers = append(d.Containers, containerDoc{
			Engine: string(c.Engine), ID: c.ID, Name: c.Name, Labels: c.Labels, Source: string(c.Source), Process: newProcessDoc(c.Process),
			Cgroup: c.Cgroup.Dir, CgroupPath: c.Cgroup.Path, CgroupID: textOf(c.Cgroup.ID),
		})
	}
	for _, o := range e.Outer {
		d.Outer = append(d.Outer, outerDoc{string(o.Engine), o.ID, o.PodUID})
	}
	return d
}

func newProcessDoc(p endpoint.Process) processDoc {
	return processDoc{PID: p.PID, StartTime: p.Start, Executable: p.Executable, Command: p.Command}
}

// newInnerInterfaces keeps apart what is empty and what isn't known.
func newInnerInterfaces(interfaces []endpoint.Interface) []innerInterface {
	if interfaces == nil {
		return nil
	}
	docs := []innerInterface{}
	for _, i := range interfaces {
		d := innerInterface{DevName: i.DevName, IfIndex: i.IfIndex, Kind: i.Kind, InnerDevName: i.InnerDevName, InnerIfIndex: i.InnerIfIndex}
		if i.Addresses != nil {
			d.Addresses = []string{}
		}
		for _, a := range i.Addresses {
			d.Addresses = append(d.Addresses, a.String())
		}
		docs = append(docs, d)
	}
	return docs
}

// textOf writes a number that JSON readers would round.
func textOf(n *uint64) *string {
	if n == nil {
		return nil
	}
	text := strconv.FormatUint(*n, 10)
	return &text
}

func endpointTable(docs []endpointDoc) output.Table {
	t := output.Table{Header: []string{"kind", "name", "containers", "pid", "command", "netns", "dev", "addresses"}}
	for _, d := range docs {
		var devices, addresses []string
		for _, i := range d.Interfaces {
			devices = append(devices, optional(i.DevName))
			addresses = append(addresses, i.Addresses...)
		}
		devices = slices.DeleteFunc(devices, func(name string) bool { return name == "" })
		t.Rows = append(t.Rows, []string{
			d.Kind, d.name(), d.containers(), strconv.Itoa(d.Process.PID), d.Process.Command, d.network(),
			strings.Join(devices, " "), strings.Join(addresses, " "),
		})
	}
	return t
}

// name is what people call an endpoint, or know it by.
func (d endpointDoc) name() string {
	switch {
	case d.Pod != nil:
		return podName(d.Pod.Namespace, d.Pod.Name, &d.Pod.UID)
	case len(d.Containers) > 0:
		return optional(d.Containers[0].Name)
	}
	return cmp.Or(optional(d.Unit), d.Process.Command)
}

// shortID is how many digits of a container's id people see, as with Docker.
const shortID = 12

func shortened(id string) string { return id[:min(len(id), shortID)] }

// containers are those of a Pod by their name: the Pod has the endpoint's.
func (d endpointDoc) containers() string {
	var list []string
	for _, c := range d.Containers {
		name := shortened(c.ID)
		if d.Pod != nil {
			name = cmp.Or(optional(c.Name), name)
		}
		list = append(list, c.Engine+":"+name)
	}
	return strings.Join(list, " ")
}

func (d endpointDoc) network() string {
	switch {
	case pointed(d.HostNetwork):
		return "host"
	case d.NetNS == nil:
		return ""
	}
	return strconv.FormatUint(*d.NetNS, 10)
}
