package endpoint

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"bpfnet/internal/fault"
)

// Ref names what an endpoint is looked for by.
type Ref struct {
	text    string
	form    string // "pid", …; "" for an address
	value   string
	number  uint64 // of "pid", and of "netns" where it is one
	address netip.Addr
}

func (r Ref) String() string { return r.text }

// forms are those that begin with a word and a colon.
var forms = []string{"pod", "container", "pid", "cgroup", "dev", "netns"}

// Forms lists what ParseRef takes, for messages.
func Forms() []string {
	return []string{"pod:NAMESPACE/NAME|UID", "container:ID|NAME", "pid:N", "cgroup:PATH", "dev:NAME", "netns:INODE|NAME", "ADDRESS"}
}

// ParseRef reads one of Forms, or returns ErrUsage.
func ParseRef(text string) (Ref, error) {
	r := Ref{text: text}
	wrong := func(why string) (Ref, error) {
		return r, fault.New(fault.ErrUsage, "%q: %s", text, why).Hint("one of: %s", strings.Join(Forms(), ", "))
	}
	word, value, _ := strings.Cut(text, ":")
	if !slices.Contains(forms, word) {
		address, err := netip.ParseAddr(text)
		if err != nil {
			return wrong("not a reference to an endpoint")
		}
		r.address = address.Unmap().WithZone("")
		return r, nil
	}
	if value == "" {
		return wrong("nothing follows the colon")
	}
	r.form, r.value = word, value
	number, err := strconv.ParseUint(value, 10, 64)
	if r.number = number; err != nil {
		r.number = 0
	}
	switch word {
	case "pid":
		if r.number == 0 || r.number > 1<<22 {
			return wrong("not the number of a process")
		}
	case "netns":
		if r.number == 0 && strings.Contains(value, "/") {
			return wrong("not an inode, and not a name")
		}
	case "cgroup":
		if value[0] != '/' {
			return wrong("the path has to begin with /")
		}
		r.value = "/" + strings.Trim(value, "/")
	}
	return r, nil
}
