package endpoint

import (
	"fmt"
	"slices"
	"strings"

	"bpfnet/internal/engine"
	"bpfnet/internal/fault"
)

// candidate is a container that a reference may mean.
type candidate struct {
	level
	told  engine.Container
	group *group
}

// candidates lists the containers that fit.
func (s *scan) candidates(fits func(candidate) bool) []candidate {
	var list []candidate
	seen := map[string]bool{}
	for _, g := range s.groups {
		for _, p := range g.members {
			c, ok := p.container()
			if !ok || seen[c.path] {
				continue
			}
			seen[c.path] = true
			if one := (candidate{c, s.told[c.path], g}); fits(one) {
				list = append(list, one)
			}
		}
	}
	return list
}

// podName is "NAMESPACE/NAME", "" if no engine told it.
func (c candidate) podName() string {
	if c.told.Pod == nil {
		return ""
	}
	return c.told.Pod.Namespace + "/" + c.told.Pod.Name
}

// fullName tells the container from others of its name: "NAMESPACE/POD/NAME", or
// its id.
func (c candidate) fullName() string {
	if c.told.Pod == nil {
		return c.id
	}
	return c.podName() + "/" + c.told.Name
}

// named says whether the container has a name, or a full one.
func (c candidate) named(name string) bool {
	return c.told.Name != "" && (c.told.Name == name || c.told.Pod != nil && c.fullName() == name)
}

// current is candidates without those of Pods that are ending, and have been made
// anew under their name.
func (s *scan) current(fits func(candidate) bool) []candidate {
	all := s.candidates(func(candidate) bool { return true })
	newest := map[string]*engine.Pod{}
	for _, c := range all {
		if had := newest[c.podName()]; c.told.Pod != nil && (had == nil || c.told.Pod.Newer(had)) {
			newest[c.podName()] = c.told.Pod
		}
	}
	return slices.DeleteFunc(all, func(c candidate) bool {
		return !fits(c) || c.told.Pod != nil && c.told.Pod.Sandbox != newest[c.podName()].Sandbox
	})
}

// groupsOf lists the groups of containers, each once.
func groupsOf(list []candidate) []*group {
	var groups []*group
	for _, c := range list {
		if !slices.Contains(groups, c.group) {
			groups = append(groups, c.group)
		}
	}
	return groups
}

// byPod returns the group of the Pod that has a uid, or "NAMESPACE/NAME". Of a Pod
// without a cgroup these are its containers.
func (s *scan) byPod(ref string) ([]*group, error) {
	found := s.candidates(func(c candidate) bool {
		return c.pod.uid == ref || c.told.Pod != nil && c.told.Pod.UID == ref
	})
	if len(found) == 0 {
		found = s.current(func(c candidate) bool { return c.podName() == ref })
	}
	if len(found) == 0 {
		return nil, s.unknown("no Pod %q has a process", ref)
	}
	return groupsOf(found), nil
}

// byContainer returns the group of the container that has an id, or else a name, or
// else is the only one whose id begins like that.
func (s *scan) byContainer(ref string) ([]*group, error) {
	if found := s.candidates(func(c candidate) bool { return c.id == ref }); len(found) > 0 {
		return groupsOf(found), nil
	}
	found := s.current(func(c candidate) bool { return c.named(ref) })
	if len(found) > 0 {
		return only(ref, found, candidate.fullName, "several containers are called", "give one of these, or an id")
	}
	found = s.candidates(func(c candidate) bool { return strings.HasPrefix(c.id, ref) })
	if len(found) == 0 {
		return nil, s.unknown("no container %q has a process", ref)
	}
	return only(ref, found, func(c candidate) string { return c.id }, "the ids of several containers begin with", "give more of the id")
}

// unknown is the error for a name that isn't found, which may be that of an engine
// that couldn't be asked.
func (s *scan) unknown(format, ref string) error {
	err := fault.New(fault.ErrNotFound, format, ref).Hint("bpfnet endpoint list")
	for _, note := range s.unasked {
		err = err.Hint("%s", note)
	}
	if len(s.told)+len(s.unasked) == 0 {
		err = err.Hint("no engine told a name: --cri-socket and --docker-socket say where one is")
	}
	return err
}

// mostCandidates is how many of those that fit an error lists.
const mostCandidates = 5

// only returns the groups of containers that are one by what tells them apart, or an
// error that lists them.
func only(ref string, found []candidate, key func(candidate) string, several, hint string) ([]*group, error) {
	var keys []string
	for _, c := range found {
		keys = append(keys, key(c))
	}
	slices.Sort(keys)
	if keys = slices.Compact(keys); len(keys) == 1 {
		return groupsOf(found), nil
	}
	more := ""
	if n := len(keys) - mostCandidates; n > 0 {
		keys, more = keys[:mostCandidates], fmt.Sprintf(" and %d more", n)
	}
	return nil, fault.New(fault.ErrUsage, "%s %q: %s%s", several, ref, strings.Join(keys, ", "), more).Hint("%s", hint)
}
