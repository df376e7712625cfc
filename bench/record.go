package bench

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
)

// record is one measurement, a line of results.ndjson.
type record struct {
	Name     string   `json:"name"`
	Unit     string   `json:"unit"`
	Value    float64  `json:"value"`    // median of the rounds
	Baseline *float64 `json:"baseline"` // median of what was measured in turn with it
	Ratio    *float64 `json:"ratio"`    // median of the rounds' ratios of the two
	Noise    float64  `json:"noise"`    // of the ratio, or of the value without one, as a part of it
	Goal     *float64 `json:"goal"`     // what must not be exceeded
	GoalOf   *string  `json:"goal_of"`  // "value" or "ratio"
	Machine  string   `json:"machine"`
}

// goal is a limit for the value or the ratio of a measurement; the zero goal is none.
type goal struct {
	of    string
	limit float64
}

// newRecord sums up the rounds of a measurement; baselines are nil without one.
func newRecord(name, unit string, values, baselines []float64, goal goal) record {
	r := record{Name: name, Unit: unit, Value: rounded(median(values)), Noise: rounded(noise(values))}
	if baselines != nil {
		ratios := make([]float64, len(values))
		for i := range values {
			ratios[i] = values[i] / baselines[i]
		}
		baseline, ratio := rounded(median(baselines)), rounded(median(ratios))
		r.Baseline, r.Ratio, r.Noise = &baseline, &ratio, rounded(noise(ratios))
	}
	if goal.of != "" {
		limit := rounded(goal.limit)
		r.Goal, r.GoalOf = &limit, &goal.of
	}
	return r
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

// noise is the median distance from the median, as a part of it.
func noise(values []float64) float64 {
	middle := median(values)
	distances := make([]float64, len(values))
	for i, v := range values {
		distances[i] = math.Abs(v - middle)
	}
	if middle == 0 {
		return 0
	}
	return median(distances) / math.Abs(middle)
}

// rounded leaves the digits that a measurement can have.
func rounded(v float64) float64 {
	r, _ := strconv.ParseFloat(strconv.FormatFloat(v, 'g', 4, 64), 64)
	return r
}

// figure is what is compared with goals and other runs: a ratio to what was
// measured in the same run says more than a value.
func (r record) figure() float64 {
	if r.Ratio != nil {
		return *r.Ratio
	}
	return r.Value
}

// leastMove is the change below which nothing counts as moved: memory differs by
// some pages between runs that are alike.
const leastMove = 0.03

// deviation is the standard deviation of what has a median distance of 1 from
// its median, where values are spread normally.
const deviation = 1.4826

// moved returns by which part a measurement differs from an earlier one, and
// whether that is more than the deviations of the two.
func (r record) moved(kept record) (change float64, beyond bool) {
	if r.Unit != kept.Unit || (r.Ratio == nil) != (kept.Ratio == nil) || kept.figure() == 0 {
		return 0, false
	}
	change = (r.figure() - kept.figure()) / math.Abs(kept.figure())
	return change, math.Abs(change) > max(deviation*(r.Noise+kept.Noise), leastMove)
}

// missed says that a goal isn't reached.
func (r record) missed() bool {
	switch {
	case r.Goal == nil:
		return false
	case *r.GoalOf == "ratio":
		return *r.Ratio > *r.Goal
	}
	return r.Value > *r.Goal
}

// readRecords reads results; a file that isn't there holds none.
func readRecords(path string) ([]record, error) {
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var records []record
	for lines := bufio.NewScanner(file); lines.Scan(); {
		var r record
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			return nil, fmt.Errorf("read %s: line %d: %w", path, len(records)+1, err)
		}
		records = append(records, r)
	}
	return records, nil
}

func writeRecords(path string, records []record) error {
	var text strings.Builder
	lines := json.NewEncoder(&text)
	for _, r := range records {
		if err := lines.Encode(r); err != nil {
			return err
		}
	}
	return os.WriteFile(path, []byte(text.String()), 0o644)
}

// merge puts new measurements in the place of kept ones of their names. The
// result has the order of names, and what is in neither is left out.
func merge(names []string, kept, measured []record) []record {
	var merged []record
	for _, name := range names {
		if r, ok := find(measured, name); ok {
			merged = append(merged, r)
		} else if r, ok := find(kept, name); ok {
			merged = append(merged, r)
		}
	}
	return merged
}

func find(records []record, name string) (record, bool) {
	i := slices.IndexFunc(records, func(r record) bool { return r.Name == name })
	if i < 0 {
		return record{}, false
	}
	return records[i], true
}

// table is the Markdown table of measurements. With others to compare with it
// has a column for what moved.
func table(records, kept []record) string {
	var text strings.Builder
	text.WriteString("| measurement | value | baseline | ratio | noise | goal |")
	rule := "|---|---:|---:|---:|---:|---|"
	if kept != nil {
		text.WriteString(" moved |")
		rule += "---:|"
	}
	fmt.Fprintf(&text, "\n%s\n", rule)
	for _, r := range records {
		fmt.Fprintf(&text, "| %s | %s | %s | %s | %s | %s |", r.Name, number(&r.Value)+" "+r.Unit, number(r.Baseline), number(r.Ratio), percent(r.Noise), r.goalText())
		if kept != nil {
			fmt.Fprintf(&text, " %s |", r.movedText(kept))
		}
		text.WriteString("\n")
	}
	return text.String()
}

func (r record) goalText() string {
	if r.Goal == nil {
		return ""
	}
	text := number(r.Goal)
	if *r.GoalOf == "ratio" {
		text = "ratio " + text
	}
	if r.missed() {
		text += ", missed"
	}
	return text
}

func (r record) movedText(kept []record) string {
	old, ok := find(kept, r.Name)
	if !ok {
		return "new"
	}
	if change, beyond := r.moved(old); beyond {
		return fmt.Sprintf("%+.0f %%", 100*change)
	}
	return ""
}

func percent(part float64) string { return fmt.Sprintf("±%.0f %%", 100*part) }

// number writes three digits, or all before the point; nothing for nil.
func number(v *float64) string {
	if v == nil {
		return ""
	}
	decimals := 0
	for size := math.Abs(*v); size < 100 && decimals < 2; size *= 10 {
		decimals++
	}
	return strconv.FormatFloat(*v, 'f', decimals, 64)
}
