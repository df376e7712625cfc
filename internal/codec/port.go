package codec

import (
	"math/big"
	"slices"
	"strconv"
	"strings"
)

// transports are the protocols with ports (IANA's numbers and keywords).
var transports = map[uint64]string{6: "tcp", 17: "udp", 33: "dccp", 132: "sctp", 136: "udplite"}

// port is a structure of a port and a transport protocol, written 80/tcp.
type port struct {
	*structure
	number, protocol *field
}

// asPort says whether a structure is that: besides padding it has two numbers,
// one of 16 bits without a sign that is called a port, and one that is called a protocol.
func asPort(n *structure) (*port, bool) {
	p := &port{structure: n}
	for i := range n.fields {
		f := &n.fields[i]
		number, isNumber := f.node.(integer)
		switch {
		case f.optional:
		case isNumber && number.bytes == 2 && !number.signed && slices.Contains(splitName(f.name), "port") && p.number == nil:
			p.number = f
		case isNumber && !number.network && number.bytes <= 8 && slices.ContainsFunc(splitName(f.name), namesProtocol) && p.protocol == nil:
			p.protocol = f
		default:
			return nil, false
		}
	}
	return p, p.number != nil && p.protocol != nil
}

func splitName(name string) []string {
	parts := words(name)
	if last := len(parts) - 1; slices.Contains([]string{"dport", "sport"}, parts[last]) {
		parts[last] = "port"
	}
	return parts
}

func namesProtocol(word string) bool {
	return slices.Contains([]string{"proto", "protocol", "l4proto", "transport"}, word)
}

func (n *port) append(dst, b []byte) []byte {
	keyword, known := transports[n.protocol.node.(integer).load(n.protocol.slice(b))]
	if !known || n.padded(b) {
		return n.structure.append(dst, b)
	}
	dst = append(dst, '"')
	dst = strconv.AppendUint(dst, n.number.node.(integer).load(n.number.slice(b)), 10)
	dst = append(dst, '/')
	dst = append(dst, keyword...)
	return append(dst, '"')
}

// padded says whether there is something in the padding, which the text leaves
// out.
func (n *port) padded(b []byte) bool {
	for i := range n.fields {
		f := &n.fields[i]
		if f.optional && slices.ContainsFunc(f.slice(b), func(v byte) bool { return v != 0 }) {
			return true
		}
	}
	return false
}

func (n *port) parse(b []byte, v any, path string) error {
	text, ok := v.(string)
	if !ok {
		return n.structure.parse(b, v, path)
	}
	digits, keyword, _ := strings.Cut(strings.TrimSpace(text), "/")
	number, err := strconv.ParseUint(digits, 10, 16)
	protocol, known := transport(keyword)
	if err != nil || !known {
		return wrong(path, "%s is not a port and its protocol: %s", quote(text), n.form())
	}
	n.number.node.(integer).store(n.number.slice(b), new(big.Int).SetUint64(number))
	n.protocol.node.(integer).store(n.protocol.slice(b), new(big.Int).SetUint64(protocol))
	return nil
}

func transport(keyword string) (uint64, bool) {
	for number, known := range transports {
		if strings.EqualFold(keyword, known) {
			return number, true
		}
	}
	return 0, false
}

func (n *port) form() string { return "80/tcp" }
