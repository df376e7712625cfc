package metrics

import (
	"cmp"
	"slices"
	"strings"
	"unicode/utf8"

	dto "github.com/prometheus/client_model/go"
)

// snapshot is what one scrape says. Labels that are equal are one series.
type snapshot struct{ families map[*Metric]*family }

// family is the series of a metric.
type family struct {
	live, last byLabels
}

type series struct {
	labels []string
	value  float64
}

func newSnapshot() *snapshot { return &snapshot{map[*Metric]*family{}} }

// add adds a value to a series.
func (s *snapshot) add(m *Metric, value float64, labels ...string) {
	s.family(m).live.of(labels).value += value
}

// set gives a series a value.
func (s *snapshot) set(m *Metric, value float64, labels ...string) {
	s.family(m).live.of(labels).value = value
}

// addLast adds the last value of what is gone to a series. Where something else has
// the same labels now, it is left out: a series that is a sum for one scrape alone
// would seem to start anew in the next.
func (s *snapshot) addLast(m *Metric, value float64, labels ...string) {
	s.family(m).last.of(labels).value += value
}

func (s *snapshot) family(m *Metric) *family {
	f := s.families[m]
	if f == nil {
		f = &family{byLabels{}, byLabels{}}
		s.families[m] = f
	}
	return f
}

// byLabels are series by the text of their labels.
type byLabels map[string]*series

// of returns the series with labels, which it keeps.
func (b byLabels) of(labels []string) *series {
	key := keyOf(labels)
	if !utf8.ValidString(key) { // names can be any bytes
		labels = slices.Clone(labels)
		for i := range labels {
			labels[i] = strings.ToValidUTF8(labels[i], "\uFFFD")
		}
		key = keyOf(labels)
	}
	one := b[key]
	if one == nil {
		one = &series{labels: labels}
		b[key] = one
	}
	return one
}

func keyOf(labels []string) string { return strings.Join(labels, "\x00") }

// gather returns what Prometheus' library writes, sorted. It isn't made by a registry,
// which would take several times as long as all else to look for series that are there
// twice.
func (s *snapshot) gather() []*dto.MetricFamily {
	var all []*dto.MetricFamily
	for m, f := range s.families {
		kind := dto.MetricType_GAUGE
		if m.Counter {
			kind = dto.MetricType_COUNTER
		}
		for key, one := range f.last {
			if f.live[key] == nil {
				f.live[key] = one
			}
		}
		all = append(all, &dto.MetricFamily{Name: &m.Name, Help: &m.Help, Type: &kind, Metric: f.metrics(m)})
	}
	slices.SortFunc(all, func(a, b *dto.MetricFamily) int { return cmp.Compare(a.GetName(), b.GetName()) })
	return all
}

// metrics are the series of a family, without the labels that are empty, which is the
// same to Prometheus.
func (f *family) metrics(m *Metric) []*dto.Metric {
	order := make([]int, len(m.Labels))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(m.Labels[a], m.Labels[b]) })
	keys := make([]string, 0, len(f.live))
	for key := range f.live {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	var all []*dto.Metric
	for _, key := range keys {
		one := f.live[key]
		metric := &dto.Metric{}
		for _, i := range order {
			if one.labels[i] != "" {
				metric.Label = append(metric.Label, &dto.LabelPair{Name: &m.Labels[i], Value: &one.labels[i]})
			}
		}
		if m.Counter {
			metric.Counter = &dto.Counter{Value: &one.value}
		} else {
			metric.Gauge = &dto.Gauge{Value: &one.value}
		}
		all = append(all, metric)
	}
	return all
}
