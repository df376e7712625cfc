package probe

// ladder is the mechanisms for one purpose, best first, each with the feature
// that it stands on.
type ladder struct {
	purpose string
	rungs   []rung
}

type rung struct{ mechanism, feature string }

// The order is the one in which attaching tries them.
var ladders = []ladder{
	{"tc", []rung{{"tcx link", "tcx"}, {"clsact filter", "cls_bpf"}}},
	{"xdp", []rung{{"native", "xdp_native"}, {"generic", "xdp_generic"}}},
	{"cgroup", []rung{{"bpf_link", "cgroup_skb"}}},
	{"events", []rung{{"ring buffer", "ring_buffer"}, {"perf buffer", "perf_buffer"}}},
	{"accounting", []rung{{"tp_btf", "tp_btf_sock_length"}, {"fentry", "fentry"}, {"kprobe.multi", "kprobe_multi"}, {"kprobe", "kprobe"}}},
}

func choices(report Report) []Choice {
	chosen := make([]Choice, 0, len(ladders))
	for _, l := range ladders {
		chosen = append(chosen, l.climb(report))
	}
	return chosen
}

// climb takes the best rung that works.
func (l ladder) climb(report Report) Choice {
	choice := Choice{Purpose: l.purpose, Refused: []Refusal{}}
	for _, r := range l.rungs {
		result, _ := report.Result(r.feature)
		if result.Status == Available {
			choice.Mechanism = &r.mechanism
			return choice
		}
		refusal := Refusal{Mechanism: r.mechanism, Status: result.Status}
		if result.Detail != nil {
			refusal.Reason = *result.Detail
		}
		choice.Refused = append(choice.Refused, refusal)
	}
	return choice
}
