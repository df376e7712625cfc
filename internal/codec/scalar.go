package codec

import (
	"encoding/binary"
	"math"
	"math/big"
	"slices"
	"strconv"
	"strings"
)

// exact is the largest integer up to which a JSON number survives programs
// that read numbers as doubles.
const exact = 1 << 53

func appendUint(dst []byte, v uint64) []byte {
	if v <= exact {
		return strconv.AppendUint(dst, v, 10)
	}
	dst = append(dst, '"')
	dst = strconv.AppendUint(dst, v, 10)
	return append(dst, '"')
}

func appendInt(dst []byte, v int64) []byte {
	if v >= 0 {
		return appendUint(dst, uint64(v))
	}
	if v >= -exact {
		return strconv.AppendInt(dst, v, 10)
	}
	dst = append(dst, '"')
	dst = strconv.AppendInt(dst, v, 10)
	return append(dst, '"')
}

func appendBig(dst []byte, v *big.Int) []byte {
	if v.IsInt64() {
		return appendInt(dst, v.Int64())
	}
	dst = append(dst, '"')
	dst = v.Append(dst, 10)
	return append(dst, '"')
}

// integer is a number of 1, 2, 4, 8 or 16 bytes, in the host's byte order
// unless network is set.
type integer struct {
	bytes   int
	signed  bool
	network bool
	pointer bool // an address: adding it up means nothing
}

func (n integer) size() int { return n.bytes }

// load reads a number of up to 8 bytes, sign-extended if it is signed.
func (n integer) load(b []byte) uint64 {
	if n.network {
		return loadUint(binary.BigEndian, b, n.signed)
	}
	return loadUint(binary.NativeEndian, b, n.signed)
}

func loadUint[O binary.ByteOrder](order O, b []byte, signed bool) uint64 {
	switch len(b) {
	case 1:
		return extend(uint64(b[0]), 8, signed)
	case 2:
		return extend(uint64(order.Uint16(b)), 16, signed)
	case 4:
		return extend(uint64(order.Uint32(b)), 32, signed)
	}
	return order.Uint64(b)
}

func extend(v uint64, width int, signed bool) uint64 {
	if !signed {
		return v
	}
	shift := 64 - width
	return uint64(int64(v<<shift) >> shift)
}

func (n integer) append(dst, b []byte) []byte {
	if n.bytes > 8 {
		return appendBig(dst, n.loadBig(b))
	}
	v := n.load(b)
	if n.signed {
		return appendInt(dst, int64(v))
	}
	return appendUint(dst, v)
}

func (n integer) loadBig(b []byte) *big.Int {
	v := new(big.Int).SetBytes(bigEndian(b, n.network))
	if n.signed && v.Bit(n.bytes*8-1) == 1 {
		v.Sub(v, new(big.Int).Lsh(big.NewInt(1), uint(n.bytes*8)))
	}
	return v
}

// bigEndian returns a copy of b with the most significant byte first.
func bigEndian(b []byte, network bool) []byte {
	c := append([]byte(nil), b...)
	if network || HostIsBigEndian {
		return c
	}
	for i, j := 0, len(c)-1; i < j; i, j = i+1, j-1 {
		c[i], c[j] = c[j], c[i]
	}
	return c
}

// HostIsBigEndian says that this machine has the most significant byte first.
var HostIsBigEndian = binary.NativeEndian.Uint16([]byte{0, 1}) == 1

func (n integer) parse(b []byte, v any, path string) error {
	if text, ok := scalar(v); ok && n.parseDigits(b, text) {
		return nil
	}
	if text, ok := v.(string); ok && n.network && n.bytes == 4 && strings.Contains(text, ".") {
		return address{bytes: 4}.parse(b, v, path)
	}
	number, err := parseNumber(v, path, n.form())
	if err != nil {
		return err
	}
	if low, high := limits(n.bytes*8, n.signed); number.Cmp(low) < 0 || number.Cmp(high) > 0 {
		return wrong(path, "%s is beyond %s", number, n.form())
	}
	n.store(b, number)
	return nil
}

// parseDigits reads what most numbers are, a few decimal digits, and leaves all
// others to big integers.
func (n integer) parseDigits(b []byte, text string) bool {
	const most = 18 // 10^18 fits into 63 bits
	if n.bytes > 8 || len(text) == 0 || len(text) > most {
		return false
	}
	var v uint64
	for i := range len(text) {
		digit := text[i] - '0'
		if digit > 9 {
			return false
		}
		v = 10*v + uint64(digit)
	}
	width := 8 * n.bytes
	if n.signed {
		width--
	}
	if v>>width != 0 {
		return false
	}
	n.put(b, v)
	return true
}

func (n integer) put(b []byte, v uint64) {
	var word [8]byte
	binary.BigEndian.PutUint64(word[:], v)
	copy(b, word[8-n.bytes:])
	if !n.network && !HostIsBigEndian {
		slices.Reverse(b)
	}
}

func (n integer) store(b []byte, v *big.Int) {
	if v.Sign() < 0 {
		v = new(big.Int).Add(v, new(big.Int).Lsh(big.NewInt(1), uint(n.bytes*8)))
	}
	copy(b, bigEndian(v.FillBytes(make([]byte, n.bytes)), n.network))
}

func (n integer) form() string { return span(n.bytes*8, n.signed) }

// span is the range of an integer of that many bits, "0..255".
func span(width int, signed bool) string {
	low, high := limits(width, signed)
	return low.String() + ".." + high.String()
}

func limits(width int, signed bool) (low, high *big.Int) {
	one := big.NewInt(1)
	if !signed {
		high = new(big.Int).Lsh(one, uint(width))
		return new(big.Int), high.Sub(high, one)
	}
	half := new(big.Int).Lsh(one, uint(width-1))
	return new(big.Int).Neg(half), new(big.Int).Sub(half, one)
}

// parseNumber reads an integer: decimal, 0x…, 0o… or 0b…. A leading zero is no
// octal number.
func parseNumber(v any, path, form string) (*big.Int, error) {
	text, ok := scalar(v)
	if !ok {
		return nil, wrong(path, "%s is not an integer: %s", show(v), form)
	}
	digits, base := strings.TrimSpace(text), 10
	sign := ""
	if strings.HasPrefix(digits, "-") {
		sign, digits = "-", digits[1:]
	}
	if len(digits) > 2 && digits[0] == '0' {
		if b := map[byte]int{'x': 16, 'X': 16, 'o': 8, 'b': 2}[digits[1]]; b != 0 {
			digits, base = digits[2:], b
		}
	}
	const longest = 160 // digits; 128 binary ones and room for zeros
	if len(digits) > longest || strings.ContainsAny(digits, "+-_") {
		return nil, wrong(path, "%s is not an integer: %s", quote(text), form)
	}
	number, ok := new(big.Int).SetString(sign+digits, base)
	if !ok {
		return nil, wrong(path, "%s is not an integer: %s", quote(text), form)
	}
	return number, nil
}

// boolean is a byte.
type boolean struct{}

func (boolean) size() int { return 1 }

func (boolean) append(dst, b []byte) []byte {
	if b[0] > 1 {
		return raw(1).append(dst, b)
	}
	return strconv.AppendBool(dst, b[0] == 1)
}

func (n boolean) parse(b []byte, v any, path string) error {
	text, ok := scalar(v)
	if truth, isBool := v.(bool); isBool {
		text, ok = strconv.FormatBool(truth), true
	}
	switch {
	case ok && (text == "true" || text == "1"):
		b[0] = 1
	case ok && (text == "false" || text == "0"):
		b[0] = 0
	default:
		return wrong(path, "%s is not %s", show(v), n.form())
	}
	return nil
}

func (boolean) form() string { return "true|false" }

// enumeration is an integer with words for some values.
type enumeration struct {
	integer
	words  map[uint64]string
	values map[string]uint64
	names  []string // in the order of their declaration
}

func (n *enumeration) append(dst, b []byte) []byte {
	if word, ok := n.words[n.load(b)]; ok {
		return appendString(dst, []byte(word))
	}
	return n.integer.append(dst, b)
}

func (n *enumeration) parse(b []byte, v any, path string) error {
	text, ok := v.(string)
	if !ok {
		return n.integer.parse(b, v, path)
	}
	if value, ok := n.lookup(text); ok {
		n.store(b, truncated(value, n.bytes))
		return nil
	}
	if _, err := parseNumber(v, "", ""); err != nil {
		return wrong(path, "%s is none of %s", quote(text), n.form())
	}
	return n.integer.parse(b, v, path)
}

func truncated(value uint64, size int) *big.Int {
	return new(big.Int).SetUint64(value << (64 - 8*size) >> (64 - 8*size))
}

// lookup finds a word, in any case where that is unambiguous.
func (n *enumeration) lookup(text string) (uint64, bool) {
	if value, ok := n.values[text]; ok {
		return value, true
	}
	var found uint64
	count := 0
	for _, name := range n.names {
		if strings.EqualFold(name, text) {
			found = n.values[name]
			count++
		}
	}
	return found, count == 1
}

func (n *enumeration) form() string {
	const most = 12
	if len(n.names) > most {
		return strings.Join(n.names[:most], "|") + "|…"
	}
	return strings.Join(n.names, "|")
}

// float is an IEEE 754 number of 4 or 8 bytes.
type float int

func (n float) size() int { return int(n) }

func (n float) load(b []byte) float64 {
	if n == 4 {
		return float64(math.Float32frombits(binary.NativeEndian.Uint32(b)))
	}
	return math.Float64frombits(binary.NativeEndian.Uint64(b))
}

func (n float) store(b []byte, v float64) {
	if n == 4 {
		binary.NativeEndian.PutUint32(b, math.Float32bits(float32(v)))
		return
	}
	binary.NativeEndian.PutUint64(b, math.Float64bits(v))
}

func (n float) append(dst, b []byte) []byte {
	v := n.load(b)
	switch {
	case math.IsInf(v, 1):
		return append(dst, `"Infinity"`...)
	case math.IsInf(v, -1):
		return append(dst, `"-Infinity"`...)
	case math.IsNaN(v):
		return n.appendNaN(dst, b)
	}
	return strconv.AppendFloat(dst, v, 'g', -1, int(n)*8)
}

// appendNaN keeps the bits of those that aren't the usual one.
func (n float) appendNaN(dst, b []byte) []byte {
	usual := make([]byte, n)
	n.store(usual, math.NaN())
	if string(usual) == string(b) {
		return append(dst, `"NaN"`...)
	}
	return raw(n).append(dst, b)
}

func (n float) parse(b []byte, v any, path string) error {
	text, ok := scalar(v)
	if !ok {
		return wrong(path, "%s is not a number", show(v))
	}
	number, err := strconv.ParseFloat(strings.TrimSpace(text), int(n)*8)
	if err != nil {
		return wrong(path, "%s is not a number of %d bits", quote(text), int(n)*8)
	}
	if math.IsNaN(number) {
		number = math.NaN()
	}
	n.store(b, number)
	return nil
}

func (float) form() string { return "NUMBER" }

// bits is a bitfield. Its slice begins with the byte of its first bit.
type bits struct {
	shift, width int // shift < 8
	signed       bool
}

func (n bits) size() int { return (n.shift + n.width + 7) / 8 }

// at returns the byte and the bit in it that hold bit i of the number.
func (n bits) at(i int) (index, bit int) {
	if HostIsBigEndian {
		place := n.shift + n.width - 1 - i
		return place / 8, 7 - place%8
	}
	place := n.shift + i
	return place / 8, place % 8
}

func (n bits) load(b []byte) uint64 {
	var v uint64
	for i := range n.width {
		index, bit := n.at(i)
		v |= uint64(b[index]>>bit&1) << i
	}
	return extend(v, n.width, n.signed)
}

func (n bits) append(dst, b []byte) []byte {
	if n.signed {
		return appendInt(dst, int64(n.load(b)))
	}
	return appendUint(dst, n.load(b))
}

func (n bits) parse(b []byte, v any, path string) error {
	number, err := parseNumber(v, path, n.form())
	if err != nil {
		return err
	}
	if low, high := limits(n.width, n.signed); number.Cmp(low) < 0 || number.Cmp(high) > 0 {
		return wrong(path, "%s is beyond %s", number, n.form())
	}
	for i := range n.width {
		index, bit := n.at(i)
		b[index] &^= 1 << bit
		b[index] |= byte(number.Bit(i)) << bit // of a negative number: two's complement
	}
	return nil
}

func (n bits) form() string { return span(n.width, n.signed) }
