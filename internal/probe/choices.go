package probe

// ladder is the mechanisms for one purpose, best first, each with the feature
// that it stands on, if any.
type ladder struct {
	purpose string
	rungs   []rung
}

type rung struct {
	mechanism string
	features  []string
}

// The order is the one in which attaching tries them.
var ladders = []ladder{
	{"tc", []rung{{"tcx link", []string{"tcx"}}, {"clsact filter", []string{"cls_bpf"}}}},
	{"xdp", []rung{{"native", []string{"xdp_native"}}, {"generic", []string{"xdp_generic"}}}},
	{"cgroup", []rung{{"bpf_link", []string{"cgroup_skb"}}}},
	{"events", []rung{{"ring buffer", []string{"ring_buffer"}}, {"perf buffer", []string{"perf_buffer"}}}},
	{"accounting", []rung{{"tp_btf", []string{"tp_btf_sock_length"}}, {"fexit", []string{"fentry", "atomics"}}, {"kprobe", []string{"kprobe", "btf"}}, {"sock_diag", nil}}},
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
		missing := r.missing(report)
		if missing == nil {
			choice.Mechanism = &r.mechanism
			return choice
		}
		refusal := Refusal{Mechanism: r.mechanism, Status: missing.Status}
		if missing.Detail != nil {
			refusal.Reason = *missing.Detail
		}
		choice.Refused = append(choice.Refused, refusal)
	}
	return choice
}

// missing is the first feature that a rung lacks, nil if it lacks none.
func (r rung) missing(report Report) *Result {
	for _, feature := range r.features {
		if result, _ := report.Result(feature); result.Status != Available {
			return &result
		}
	}
	return nil
}
