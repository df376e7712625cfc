package sink

import (
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"bpfnet/internal/fault"
	"bpfnet/internal/nearest"
)

// Stdout is the kind of sink that is the command's own output.
const Stdout = "stdout"

// kind is a kind of sink.
type kind struct {
	name     string
	target   string   // what stands behind "="; "": nothing does
	byItself bool     // it needs no target
	options  []string // that it takes
	open     func(Spec, Options) (driver, error)
}

// remoteOptions are those of all kinds that speak HTTP.
var remoteOptions = []string{"url-file", "url-env", "ca-file", "user", "password-file", "password-env"}

var kinds = []kind{
	{name: Stdout},
	{name: "file", target: "PATH", open: openFile},
	{name: "syslog", target: "PATH", byItself: true, open: openSyslog},
	{name: "webhook", target: "URL", options: append([]string{"secret-file", "secret-env", "token-file", "token-env"}, remoteOptions...), open: openWebhook},
	{name: "alertmanager", target: "URL", options: append([]string{"token-file", "token-env"}, remoteOptions...), open: openAlertmanager},
	{name: "elasticsearch", target: "URL", options: append([]string{"api-key-file", "api-key-env"}, remoteOptions...), open: openElasticsearch},
	{name: "otlp", target: "URL", options: append([]string{"token-file", "token-env"}, remoteOptions...), open: openOTLP},
	{name: "exec", target: "COMMAND", options: []string{"arg", "timeout"}, open: openExec},
}

// Kinds lists the kinds of sinks.
func Kinds() (names []string) {
	for _, k := range kinds {
		names = append(names, k.name)
	}
	return names
}

// Grammar is what a sink looks like on the command line.
const Grammar = "KIND[=TARGET][,OPTION=VALUE]..."

// Spec says where alerts go and how.
type Spec struct {
	kind   kind
	target string
	values map[string][]string
	url    *url.URL // of kinds with a URL
}

// Kind is the kind of sink.
func (s Spec) Kind() string { return s.kind.name }

// Name is what notes call it: without the part of a URL that may be secret.
func (s Spec) Name() string {
	switch {
	case s.url != nil:
		return s.kind.name + "=" + s.url.Scheme + "://" + s.url.Host
	case s.target != "":
		return s.kind.name + "=" + s.target
	}
	return s.kind.name
}

// value is an option's value, "" if it isn't given.
func (s Spec) value(option string) string {
	if all := s.values[option]; len(all) > 0 {
		return all[0]
	}
	return ""
}

// Parse reads a sink of the command line, without a look at what it names.
func Parse(text string) (Spec, error) {
	head, rest, _ := strings.Cut(text, ",")
	name, target, given := strings.Cut(head, "=")
	i := slices.IndexFunc(kinds, func(k kind) bool { return k.name == name })
	if i < 0 {
		err := fault.New(fault.ErrUsage, "read sink: no such kind %q", name)
		if near := nearest.Word(name, Kinds()); near != "" {
			return Spec{}, err.Hint("did you mean %q?", near)
		}
		return Spec{}, err.Hint("a sink is %s; kinds: %s", Grammar, strings.Join(Kinds(), ", "))
	}
	s := Spec{kind: kinds[i], target: target}
	switch {
	case s.kind.target == "" && given:
		return s, s.wrong("nothing stands behind it")
	case given && target == "":
		return s, s.wrong("%s is missing", s.kind.target)
	}
	if err := s.parseOptions(rest, strings.Contains(text, ",")); err != nil {
		return s, err
	}
	switch elsewhere := s.has("url"); {
	case elsewhere && given:
		return s, s.wrong("the URL is given twice")
	case !elsewhere && !given && s.kind.target != "" && !s.kind.byItself:
		return s, s.wrong("%s is missing", s.kind.target).Hint("%s=%s", name, s.kind.target)
	case given && s.kind.target == "URL":
		if err := s.parseURL(target); err != nil {
			return s, err
		}
	}
	return s, s.checkOptions()
}

// has says whether a secret is given.
func (s *Spec) has(secret string) bool {
	return s.value(secret+"-file")+s.value(secret+"-env") != ""
}

// open opens the sink, whose URL is known then.
func (s *Spec) open(o Options) (driver, error) {
	if err := s.resolve(o); err != nil {
		return nil, err
	}
	return s.kind.open(*s, o)
}

// resolve reads the URL that isn't on the command line.
func (s *Spec) resolve(o Options) error {
	read, err := newSecret(*s, o, "url")
	if err != nil || read == nil {
		return err
	}
	text, err := read()
	if err != nil {
		return err
	}
	return s.parseURL(text)
}

// wrong is an error of what is written; it doesn't repeat what may be secret.
func (s Spec) wrong(format string, args ...any) *fault.Error {
	return fault.New(fault.ErrUsage, "read sink "+s.kind.name+": "+format, args...)
}

// parseURL reads a URL. Errors don't repeat it, it may have a secret.
func (s *Spec) parseURL(text string) error {
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return s.wrong("the URL isn't one")
	case u.Scheme != "http" && u.Scheme != "https":
		return s.wrong("the URL doesn't begin with http:// or https://")
	case u.Hostname() == "":
		return s.wrong("the URL has no host")
	case u.User != nil:
		return s.wrong("everybody can read a user and a password in a URL").Hint("user=NAME,password-file=PATH   takes the password from a file, password-env=NAME from the environment")
	case s.kind.name == "elasticsearch" && strings.Trim(u.Path, "/") == "":
		return s.wrong("the URL has no index").Hint("elasticsearch=https://HOST:9200/INDEX   names an index or a data stream")
	case u.Fragment != "":
		return s.wrong("the URL has a fragment")
	case s.value("ca-file") != "" && u.Scheme != "https":
		return s.wrong("ca-file is for https://")
	}
	s.url = u
	return nil
}

func (s *Spec) parseOptions(text string, any bool) error {
	s.values = map[string][]string{}
	if !any {
		return nil
	}
	for part := range strings.SplitSeq(text, ",") {
		name, value, ok := strings.Cut(part, "=")
		switch {
		case !slices.Contains(s.kind.options, name):
			return s.noOption(name, ok)
		case !ok || value == "" && name != "arg":
			return s.wrong("%s= has no value", name)
		case len(s.values[name]) > 0 && name != "arg":
			return s.wrong("%s= is given twice", name)
		}
		s.values[name] = append(s.values[name], value)
	}
	return nil
}

func (s *Spec) noOption(name string, given bool) error {
	if len(s.kind.options) == 0 {
		return s.wrong("it takes no options")
	}
	hint := "one of: " + strings.Join(s.kind.options, ", ")
	switch near := nearest.Word(name, s.kind.options); {
	case !given: // it may be a part of a URL
		return s.wrong("no such option").Hint("%s; a comma in a URL is %%2C", hint)
	case near != "":
		hint = fmt.Sprintf("did you mean %q?", near)
	}
	return s.wrong("no such option %q", name).Hint("%s", hint)
}

// checkOptions refuses options that contradict each other.
func (s *Spec) checkOptions() error {
	for _, name := range slices.Sorted(maps.Keys(s.values)) {
		if base, file := strings.CutSuffix(name, "-file"); file && s.value(base+"-env") != "" {
			return s.wrong("%s and %s-env exclude each other", name, base)
		}
	}
	switch {
	case s.has("password") != (s.value("user") != ""):
		return s.wrong("a user and a password belong together").Hint("user=NAME,password-file=PATH")
	case s.has("password") && (s.has("token") || s.has("api-key")):
		return s.wrong("a password and a key exclude each other")
	}
	_, err := s.timeout()
	return err
}

// timeout is how long a command may run.
func (s *Spec) timeout() (time.Duration, error) {
	text := s.value("timeout")
	if text == "" {
		return execTime, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		return 0, s.wrong("timeout %q isn't a time above 0", text).Hint("timeout=30s")
	}
	return d, nil
}

// secretVariables are the variables of the environment that have secrets.
func secretVariables(specs []Spec) (names []string) {
	for _, s := range specs {
		for option, values := range s.values {
			if strings.HasSuffix(option, "-env") {
				names = append(names, values...)
			}
		}
	}
	return names
}
