package feed

import "strings"

// Limits of DNS, in bytes.
const (
	domainBytes = 253
	labelBytes  = 63
)

// ParseDomain reads a domain of two labels or more, which "*." may stand in
// front of, and returns it in lower case and without a last dot. Underscores are
// letters; errors are of kind fault.ErrUsage.
func ParseDomain(text string) (string, error) {
	domain := strings.TrimSuffix(text, ".")
	if cause := refuseDomain(strings.TrimPrefix(domain, "*.")); cause != "" {
		return "", wrong(text, cause)
	}
	if len(domain) > domainBytes {
		return "", wrong(text, "is not a domain: it is longer than 253 bytes")
	}
	return strings.ToLower(domain), nil
}

// refuseDomain says what is wrong with a name, "" if nothing is.
func refuseDomain(name string) string {
	label, rest, dotted := strings.Cut(name, ".")
	if name != "" && !dotted && refuseLabel(label) == "" {
		return "is not a domain: it has a single label"
	}
	for {
		if cause := refuseLabel(label); cause != "" {
			return cause
		}
		if !dotted {
			break
		}
		label, rest, dotted = strings.Cut(rest, ".")
	}
	if strings.Trim(label, "0123456789") == "" {
		return "is not a domain: its last label is a number"
	}
	return ""
}

func refuseLabel(label string) string {
	for i := range len(label) {
		switch c := label[i]; {
		case c >= 0x80:
			return "is not ASCII: write it as a browser sends it, with labels that begin with xn--"
		case c != '-' && c != '_' && (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'z'):
			return "is neither an address nor a domain"
		}
	}
	switch {
	case label == "":
		return "is not a domain: one of its labels is empty"
	case len(label) > labelBytes:
		return "is not a domain: one of its labels is longer than 63 bytes"
	case label[0] == '-' || label[len(label)-1] == '-':
		return "is not a domain: one of its labels begins or ends with a hyphen"
	}
	return ""
}
