package commands

import (
	"cmp"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"bpfnet/internal/fault"
	"bpfnet/internal/nearest"
	"bpfnet/output"
)

// node is what parse needs to know of one command.
type node struct {
	words map[string]*node  // subcommands
	flags map[string]bool   // own flags, without dashes: does it take a value
	once  map[string]string // those of them that may be given once: their first name
	raw   bool              // what follows is arguments, whatever it looks like
	usage string            // what the command is for
	about map[string]string // what each flag is for
}

// grammar describes a command tree to parse. The root's flags are global.
func grammar(app *cli.App) *node {
	return nodeOf(&cli.Command{Subcommands: app.Commands, Flags: app.Flags})
}

func nodeOf(command *cli.Command) *node {
	n := &node{
		words: map[string]*node{},
		flags: map[string]bool{},
		once:  map[string]string{},
		raw:   command.Name == completeWord,
		usage: command.Usage,
		about: map[string]string{},
	}
	for _, f := range command.Flags {
		d, documented := f.(cli.DocGenerationFlag)
		s, many := f.(cli.DocGenerationSliceFlag)
		many = many && s.IsSliceFlag()
		names := f.Names()
		for _, name := range names {
			n.flags[name] = documented && d.TakesValue()
			if !many {
				n.once[name] = names[0]
			}
			if documented {
				n.about[name] = strings.ReplaceAll(d.GetUsage(), "`", "")
			}
		}
	}
	for _, sub := range command.Subcommands {
		for _, name := range sub.Names() {
			n.words[name] = nodeOf(sub)
		}
	}
	return n
}

// typedFlag is one flag of a command line.
type typedFlag struct {
	name  string // without dashes
	value string
	given bool // a value was
}

func (f typedFlag) String() string {
	if f.given {
		return dashed(f.name) + "=" + f.value
	}
	return dashed(f.name)
}

// dashed writes a flag's name as users do.
func dashed(name string) string {
	if len(name) == 1 {
		return "-" + name
	}
	return "--" + name
}

// line is a command line taken apart.
type line struct {
	path  []string // the words that name the command
	node  *node    // the command
	flags []typedFlag
	args  []string
}

// flag returns the value of the last flag of one of these names.
func (l line) flag(names ...string) (value string, ok bool) {
	for _, f := range l.flags {
		if slices.Contains(names, f.name) {
			value, ok = f.value, true
		}
	}
	return value, ok
}

// parse takes a command line, without the program's name, apart. Flags may stand
// anywhere before a "--"; one without its value is a usage error. It goes on after an error, so that the
// caller knows the flags in any case.
func parse(root *node, argv []string) (line, error) {
	l := line{node: root}
	var wrong error
	for i := 0; i < len(argv); i++ {
		word := argv[i]
		switch {
		case l.node.raw:
			l.args = append(l.args, word)
		case word == "--":
			l.args = append(l.args, argv[i+1:]...)
			return l, wrong
		case !isFlag(word):
			l.word(word)
		case isJoinedFormat(word):
			l.flags = append(l.flags, typedFlag{"o", word[len("-o"):], true})
		case l.isCluster(root, word):
			for _, letter := range word[1:] {
				l.flags = append(l.flags, typedFlag{name: string(letter)})
			}
		default:
			f := splitFlag(word)
			if !f.given && l.takesValue(root, f.name) {
				if i+1 == len(argv) || readsAsFlag(argv[i+1]) {
					wrong = cmp.Or(wrong, valueMissing(f.name))
					continue
				}
				i++
				f.value, f.given = argv[i], true
			}
			l.flags = append(l.flags, f)
		}
	}
	return l, wrong
}

// order puts a line into the order that urfave/cli parses: global flags,
// command, its flags, "--", arguments. A value is always joined to its flag by
// "=", so that none is taken for a command or the other way round. An unknown
// flag and an unknown command are usage errors.
func (l line) order(root *node) ([]string, error) {
	if len(l.node.words) > 0 && len(l.args) > 0 {
		return nil, unknownCommand(l)
	}
	var global, local []string
	for _, f := range l.flags {
		_, own := l.node.flags[f.name]
		_, anywhere := root.flags[f.name]
		switch {
		case own && isHelp(f.name):
			return append(l.path, "--help"), nil
		case own:
			local = append(local, f.String())
		case anywhere:
			global = append(global, f.String())
		default:
			return nil, unknownFlag(root, l, f.name)
		}
	}
	if err := l.contradiction(root); err != nil {
		return nil, err
	}
	ordered := slices.Concat(global, l.path, local)
	if len(l.args) > 0 {
		ordered = append(append(ordered, "--"), l.args...)
	}
	return ordered, nil
}

// showByDefault adds the command that bpftool runs where none is named.
func (l *line) showByDefault() {
	_, asBpftool := l.flag("json", "j", "pretty", "p")
	_, help := l.flag("help", "h")
	if show, ok := l.node.words["show"]; ok && asBpftool && !help && len(l.args) == 0 {
		l.node, l.path = show, append(l.path, "show")
	}
}

// contradiction refuses two values for a flag that takes one.
func (l line) contradiction(root *node) error {
	before := map[string]string{}
	for _, f := range l.flags {
		name, once := root.once[f.name]
		if own, local := l.node.once[f.name]; local {
			name, once = own, true
		}
		if !f.given {
			f.value = "true"
		}
		if value, twice := before[name]; once && twice && value != f.value {
			return fault.New(fault.ErrUsage, "flag %s is given twice: %q and %q", dashed(name), value, f.value).
				Hint("see: %s", helpLine(l.path))
		}
		before[name] = f.value
	}
	return nil
}

// word takes the next word that isn't a flag: a subcommand or an argument.
func (l *line) word(word string) {
	if next, ok := l.node.words[word]; ok && len(l.args) == 0 {
		l.node, l.path = next, append(l.path, word)
		return
	}
	l.args = append(l.args, word)
}

// takesValue says whether a flag takes a value. While the command isn't named
// in full, a flag of any command below counts: one name means the same
// everywhere.
func (l *line) takesValue(root *node, name string) bool {
	if takes, known := root.flags[name]; known {
		return takes
	}
	return l.node.anyTakes(name)
}

func (n *node) anyTakes(name string) bool {
	if takes, known := n.flags[name]; known {
		return takes
	}
	for _, sub := range n.words {
		if sub.anyTakes(name) {
			return true
		}
	}
	return false
}

// isCluster says whether a word is several flags of one letter behind one dash,
// "-jp", that take no values.
func (l *line) isCluster(root *node, word string) bool {
	if strings.HasPrefix(word, "--") || len(word) < 3 || root.knows(word[1:]) || l.node.knows(word[1:]) {
		return false
	}
	for _, letter := range word[1:] {
		name := string(letter)
		if l.takesValue(root, name) || !root.knows(name) && !l.node.knows(name) {
			return false
		}
	}
	return true
}

// isJoinedFormat says whether a word is -o and its value in one, "-ojson".
func isJoinedFormat(word string) bool {
	format, ok := strings.CutPrefix(word, "-o")
	return ok && slices.Contains(output.Formats(), format)
}

// knows says whether the command or one below has a flag of that name.
func (n *node) knows(name string) bool {
	if _, known := n.flags[name]; known {
		return true
	}
	for _, sub := range n.words {
		if sub.knows(name) {
			return true
		}
	}
	return false
}

// isFlag says whether a word is a flag: not "-", which means standard input,
// and not a negative number.
func isFlag(word string) bool {
	if len(word) < 2 || word[0] != '-' {
		return false
	}
	return word[1] < '0' || word[1] > '9'
}

// readsAsFlag says whether a word where a value could stand is a flag instead:
// one with two dashes, or one letter after a dash. "--sort -bytes" is a value.
func readsAsFlag(word string) bool {
	return isFlag(word) && (strings.HasPrefix(word, "--") || len(splitFlag(word).name) == 1)
}

func splitFlag(word string) typedFlag {
	name := strings.TrimPrefix(word[1:], "-")
	name, value, given := strings.Cut(name, "=")
	return typedFlag{name, value, given}
}

func isHelp(name string) bool { return name == "help" || name == "h" }

func valueMissing(flag string) error {
	return fault.New(fault.ErrUsage, "flag %s needs a value", dashed(flag)).
		Hint("a value that begins with a dash is written %s=VALUE", dashed(flag))
}

func unknownCommand(l line) error {
	word := strings.Join(append(slices.Clone(l.path), l.args[0]), " ")
	if _, known := l.node.words[l.args[0]]; known {
		return fault.New(fault.ErrUsage, `a command is missing before "--"`).
			Hint(`did you mean "bpfnet %s", without the "--"?`, word)
	}
	err := fault.New(fault.ErrUsage, "unknown command %q", word)
	if near := nearest.Word(l.args[0], keys(l.node.words)); near != "" {
		return err.Hint("did you mean %q?", near)
	}
	return err.Hint("see: %s", helpLine(l.path))
}

func unknownFlag(root *node, l line, name string) error {
	err := fault.New(fault.ErrUsage, "unknown flag %s", dashed(name))
	near := nearest.Word(name, append(keys(l.node.flags), keys(root.flags)...))
	if near != "" && len(name) > 1 {
		return err.Hint("did you mean %s?", dashed(near))
	}
	return err.Hint("see: %s", helpLine(l.path))
}

func helpLine(path []string) string {
	return strings.Join(slices.Concat([]string{"bpfnet"}, path, []string{"--help"}), " ")
}

// keys lists the words that users may see, sorted.
func keys[V any](m map[string]V) []string {
	var words []string
	for k := range m {
		if !strings.HasPrefix(k, "__") {
			words = append(words, k)
		}
	}
	slices.Sort(words)
	return words
}
