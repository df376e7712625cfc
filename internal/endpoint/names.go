package endpoint

import (
	"path"

	"bpfnet/internal/engine"
)

// match finds what engines said for the containers that have processes.
func (s *scan) match(processes []*process, answer engine.Answer) {
	s.unasked = answer.Notes
	placed := map[string]engine.Container{}
	for _, c := range answer.Placed {
		placed[c.Cgroup] = c
	}
	for _, p := range processes {
		p.adopt(placed)
		for i, c := range p.containers {
			told, ok := answer.Containers[c.id]
			if !ok {
				told, ok = placed[c.path]
			}
			if !ok {
				continue
			}
			s.told[c.path] = told
			if c.engine == Unknown {
				p.containers[i].engine = Engine(told.Engine)
			}
		}
	}
}

// adopt makes the process one of a container of which only the engine knows the
// cgroup.
func (p *process) adopt(placed map[string]engine.Container) {
	if len(p.containers) > 0 {
		return
	}
	for dir := p.path; len(dir) > 1; dir = path.Dir(dir) {
		if c, ok := placed[dir]; ok {
			p.containers = []level{{engine: Engine(c.Engine), id: c.ID, path: dir}}
			p.unit, p.unitPath, p.slice = "", "", ""
			return
		}
	}
}

// pod describes the Pod of a group, which need not have a cgroup; nil if it is none.
func (s *scan) pod(g *group, level podLevel) *Pod {
	var pod *Pod
	if level.uid != "" {
		pod = &Pod{UID: level.uid, QoS: &level.qos, Source: SourceCgroup}
	}
	told := s.toldPod(g)
	if told == nil {
		return pod
	}
	if pod == nil {
		pod = &Pod{UID: told.UID}
	}
	pod.Namespace, pod.Name, pod.Labels, pod.Source = &told.Namespace, &told.Name, told.Labels, Source(engine.CRI)
	return pod
}

// toldPod is what an engine said about the Pod of a group: about the newest sandbox
// while an older one is ending.
func (s *scan) toldPod(g *group) *engine.Pod {
	var pod *engine.Pod
	for _, p := range g.members {
		c, _ := p.container()
		if told := s.told[c.path].Pod; told != nil && (pod == nil || told.Newer(pod)) {
			pod = told
		}
	}
	return pod
}
