package ports

// Schema names the document that NewDocument makes.
const Schema = "bpfnet.ports/v1"

// Document is the policy of a loaded instance with what it has counted.
type Document struct {
	Schema      string         `json:"schema"`
	Changed     bool           `json:"changed"`
	DryRun      bool           `json:"dry_run"`
	Name        string         `json:"name"`    // loaded instance
	Default     string         `json:"default"` // "pass" or "drop"
	Established bool           `json:"established"`
	Strict      bool           `json:"strict"`
	Rules       []RuleDocument `json:"rules"` // in the order in which they were added
	Rows        []RowDocument  `json:"rows"`  // packets that no rule decided
}

// RuleDocument is one rule with the packets that it decided.
type RuleDocument struct {
	Number    uint16 `json:"number"`
	Verdict   string `json:"verdict"`
	Ports     string `json:"ports"` // as the command line takes it
	Side      string `json:"side"`
	Protocol  string `json:"protocol"`
	FirstPort uint16 `json:"first_port"`
	LastPort  uint16 `json:"last_port"`
	Counter
}

// RowDocument is the packets that were passed or dropped for one reason.
type RowDocument struct {
	Row     string `json:"row"`
	Verdict string `json:"verdict"`
	Counter
}

// NewDocument describes a policy of the loaded instance of that name.
func NewDocument(name string, result Result, dryRun bool) Document {
	policy := result.Policy
	d := Document{
		Schema: Schema, Changed: result.Changed, DryRun: dryRun, Name: name,
		Default: verdict(policy.DefaultDrop), Established: policy.Established, Strict: policy.Strict,
		Rules: []RuleDocument{}, Rows: []RowDocument{},
	}
	for i, rule := range policy.Rules {
		d.Rules = append(d.Rules, RuleDocument{
			Number: rule.Number, Verdict: verdict(rule.Drop), Ports: rule.String(), Side: rule.Side.String(),
			Protocol: rule.Protocol.String(), FirstPort: rule.First, LastPort: rule.Last, Counter: result.Rules[i],
		})
	}
	for i, row := range Rows() {
		d.Rows = append(d.Rows, RowDocument{row.Name, verdict(row.Drop), result.Rows[i]})
	}
	return d
}

func verdict(drop bool) string {
	if drop {
		return "drop"
	}
	return "pass"
}
