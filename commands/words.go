package commands

import (
	"encoding/hex"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"bpfnet/internal/fault"
	"bpfnet/internal/maps"
)

// This file understands bpftool's words, so that its users' scripts go on
// working: "id 57", "pinned PATH", "key hex 0a 00", "value 1 0 0 0 noexist".

// objectWords takes the name of a map, program or link off the front of a
// command's arguments: "id N", "name S", "pinned PATH" or "tag HEX" become
// id:N, name:S, the absolute path and tag:HEX; any other word is taken as it is.
func objectWords(words []string) (ref string, rest []string, err error) {
	if len(words) == 0 {
		return "", nil, nil
	}
	kind := words[0]
	if !isObjectWord(kind) {
		return kind, words[1:], nil
	}
	if len(words) == 1 || words[1] == "" {
		return "", nil, fault.New(fault.ErrUsage, "%q: the word after it is missing", kind).
			Hint("id N, name NAME, pinned PATH; something that is called %q is name:%s", kind, kind)
	}
	if kind != "pinned" {
		return kind + ":" + words[1], words[2:], nil
	}
	path, err := filepath.Abs(words[1])
	return path, words[2:], err
}

func isObjectWord(word string) bool {
	return slices.Contains([]string{"id", "name", "pinned", "tag"}, word)
}

// ownObject is the argument of a command that shows what bpfnet loaded or
// attached, also as "id N". bpftool's other words name what documents of our own
// don't have.
func ownObject(c *cli.Context, name string) (reference, error) {
	words := c.Args().Slice()
	if len(words) != 2 || !isObjectWord(words[0]) || words[1] == "" {
		return parseRef(c.Args().First()), args(c, name)
	}
	if words[0] != "id" {
		return reference{}, fault.New(fault.ErrUsage, "unexpected argument %q", words[0]).
			Hint("with --json it is understood as bpftool does: bpfnet -j %s %s", strings.TrimPrefix(commandName(c), "bpfnet "), strings.Join(words, " "))
	}
	ref := parseRef("id:" + words[1])
	if ref.id == 0 {
		return ref, usage(c, "id %q: not the number of an object", words[1])
	}
	return ref, nil
}

// mapWords are the arguments of a command on a map, whichever way they are
// written: "MAP KEY VALUE" or bpftool's "id 57 key hex 0a 00 value 1 0 noexist".
// What wasn't given is "".
type mapWords struct {
	ref, key, value string
	condition       maps.Condition
	conditionWord   string // "noexist"
}

// mapArgs reads the arguments of a command on a map and checks them like args.
func mapArgs(c *cli.Context, names ...string) (mapWords, error) {
	line := strings.Join(append([]string{"usage:", commandName(c)}, names...), " ")
	words := c.Args().Slice()
	if at := slices.Index(words, ""); at >= 0 {
		name := strings.Trim(names[min(at, len(names)-1)], "[]")
		err := fault.New(fault.ErrUsage, "argument %s is empty", name).Hint("%s", line)
		if name == "KEY" || name == "VALUE" {
			err.Hint(`an empty text is written '""'`)
		}
		return mapWords{}, err
	}
	w, err := parseMapWords(words, names...)
	if err != nil {
		return w, fault.New(fault.ErrUsage, "%w", err).Hint("%s", line)
	}
	for i, value := range []string{w.ref, w.key, w.value}[:len(names)] {
		if value == "" && !strings.HasPrefix(names[i], "[") {
			return w, fault.New(fault.ErrUsage, "argument %s is missing", names[i]).Hint("%s", line)
		}
	}
	return w, nil
}

// parseMapWords reads the arguments of a command that takes those that names
// lists, a beginning of MAP, KEY and VALUE.
func parseMapWords(words []string, names ...string) (mapWords, error) {
	ref, rest, err := objectWords(words)
	if err != nil {
		return mapWords{}, err
	}
	w := mapWords{ref: ref}
	if len(names) > 1 && len(rest) > len(names)-1 && rest[0] == "key" {
		return w, w.data(rest, names)
	}
	for i, to := range []*string{&w.key, &w.value}[:len(names)-1] {
		if i < len(rest) {
			*to = rest[i]
		}
	}
	if len(rest) > len(names)-1 {
		return w, fault.New(fault.ErrUsage, "unexpected argument %q", rest[len(names)-1])
	}
	return w, nil
}

// data reads "key DATA [value DATA] [any|exist|noexist]".
func (w *mapWords) data(words []string, names []string) (err error) {
	key, value, hasValue := words[1:], []string(nil), false
	if len(names) > 2 {
		words = w.conditional(words)
		key = words[1:]
		if at := slices.Index(key, "value"); at >= 0 {
			key, value, hasValue = key[:at], key[at+1:], true
		}
	}
	if w.key, err = dataWords("key", key); err != nil {
		return err
	}
	if hasValue {
		w.value, err = valueWords(value)
	}
	return err
}

// conditional takes bpftool's word for when to write off the end.
func (w *mapWords) conditional(words []string) []string {
	last := len(words) - 1
	condition, ok := map[string]maps.Condition{
		"any": maps.Always, "exist": maps.IfPresent, "noexist": maps.IfAbsent,
	}[words[last]]
	if !ok {
		return words
	}
	w.condition, w.conditionWord = condition, words[last]
	return words[:last]
}

// valueWords reads a value: data, or the map or program that it refers to.
func valueWords(words []string) (string, error) {
	if len(words) != 2 || words[0] == "hex" {
		return dataWords("value", words)
	}
	ref, rest, err := objectWords(words)
	if err != nil || len(rest) == 0 {
		return ref, err
	}
	return dataWords("value", words)
}

// dataWords reads bytes: numbers, or after "hex" hexadecimal digits without
// their 0x. A single word that isn't "hex" is typed text.
func dataWords(name string, words []string) (string, error) {
	base := 0
	switch {
	case len(words) == 0, len(words) == 1 && words[0] == "hex":
		return "", fault.New(fault.ErrUsage, "%s: its bytes are missing", name)
	case words[0] == "hex":
		words, base = words[1:], 16
	case len(words) == 1:
		return words[0], nil
	}
	data := make([]byte, len(words))
	for i, word := range words {
		digits := word
		if base == 16 {
			digits = strings.TrimPrefix(strings.TrimPrefix(word, "0x"), "0X")
		}
		b, err := strconv.ParseUint(digits, base, 8)
		if err != nil {
			return "", fault.New(fault.ErrUsage, "%s: %q is not a byte", name, word).
				Hint("the bytes are written %s 10 0 0 1 or %s hex 0a 00 00 01", name, name)
		}
		data[i] = byte(b)
	}
	return "hex:" + hex.EncodeToString(data), nil
}
