package baseline

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"bpfnet/internal/detect"
	"bpfnet/internal/sample"
	"bpfnet/internal/traffic"
)

// The forms of an endpoint's name.
const (
	workloadForm  = "workload:" // NAMESPACE/NAME[/CONTAINER]
	containerForm = "container:"
	addressForm   = "address:" // ADDRESS[@DEVICE]
)

// Names of Kubernetes' Pods end with what was made up for them, of letters and digits
// that no word consists of. The hash of a ReplicaSet is a number, written in ten of
// them.
var (
	random   = regexp.MustCompile(`^(.+)-[bcdfghjklmnpqrstvwxz2456789]{5}$`)
	hash     = regexp.MustCompile(`^(.+)-[456789bcdf]{6,10}$`)
	minutes  = regexp.MustCompile(`^(.+)-[0-9]{8,}$`)
	ordinals = regexp.MustCompile(`^(.+)-(0|[1-9][0-9]{0,4})$`)
)

// workloadOf is what the Pods of a workload have in common in their names: without the
// five characters at the end that Deployments, ReplicaSets, DaemonSets and Jobs give
// them, and the hash or, of a CronJob, the time in front of these; else without the
// number of a StatefulSet.
func workloadOf(pod string) string {
	if m := random.FindStringSubmatch(pod); m != nil {
		for _, inner := range []*regexp.Regexp{hash, minutes} {
			if n := inner.FindStringSubmatch(m[1]); n != nil {
				return n[1]
			}
		}
		return m[1]
	}
	if m := ordinals.FindStringSubmatch(pod); m != nil {
		return m[1]
	}
	return pod
}

// NameOf is the name under which a baseline knows an endpoint. It stays the same when a
// Pod or container is made anew.
func NameOf(who *traffic.Who) string {
	namespace, pod, container, device := sample.Value(who.Namespace), sample.Value(who.Pod), sample.Value(who.Container), sample.Value(who.DevName)
	switch {
	case namespace != "" && pod != "" && container != "":
		return workloadForm + namespace + "/" + workloadOf(pod) + "/" + container
	case namespace != "" && pod != "":
		return workloadForm + namespace + "/" + workloadOf(pod)
	case container != "":
		return containerForm + container
	case device != "":
		return addressForm + who.Address.String() + "@" + device
	case who.IfIndex != nil:
		return addressForm + who.Address.String() + "@#" + strconv.FormatUint(uint64(*who.IfIndex), 10)
	}
	return addressForm + who.Address.String()
}

// checkName says what is wrong with a name.
func checkName(name string) error {
	form, rest, _ := strings.Cut(name, ":")
	switch form + ":" {
	case workloadForm:
		parts := strings.SplitN(rest, "/", 3)
		if len(parts) > 1 && !slices.Contains(parts, "") {
			return nil
		}
		return fmt.Errorf("endpoint %q isn't %sNAMESPACE/NAME or %sNAMESPACE/NAME/CONTAINER", name, workloadForm, workloadForm)
	case containerForm:
		if rest != "" {
			return nil
		}
	case addressForm:
		address, device, at := strings.Cut(rest, "@")
		if _, err := netip.ParseAddr(address); err != nil || at && device == "" {
			return fmt.Errorf("endpoint %q isn't %sADDRESS or %sADDRESS@DEVICE", name, addressForm, addressForm)
		}
		return nil
	}
	return fmt.Errorf("endpoint %q doesn't begin with %s, %s or %s", name, workloadForm, containerForm, addressForm)
}

// instance tells Pods of one workload apart, and containers and addresses.
type instance struct {
	name string // of the endpoint
	kind detect.Kind
	id   string
}

func instanceOf(key traffic.Key, who *traffic.Who) instance {
	i := instance{name: NameOf(who), kind: detect.Address}
	switch {
	case who.PodUID != nil:
		i.kind, i.id = detect.Pod, *who.PodUID+"/"+sample.Value(who.ContainerID)
	case who.ContainerID != nil:
		i.kind, i.id = detect.Container, *who.ContainerID
	default:
		i.id = fmt.Sprintf("%s %d %d", key.Address, key.IfIndex, key.CgroupID)
	}
	return i
}

// keyOf is the key of an endpoint's counters.
func keyOf(point traffic.Point, who *traffic.Who) traffic.Key {
	cgroup, _ := strconv.ParseUint(sample.Value(who.CgroupID), 10, 64) // readers have checked it
	return traffic.Key{Point: point, Address: who.Address, IfIndex: sample.Value(who.IfIndex), CgroupID: cgroup}
}
