package sink

import (
	"errors"
	"os"
	"strings"
	"testing"

	"bpfnet/internal/fault"
)

func TestParse(t *testing.T) {
	for text, want := range map[string]string{
		"stdout": "stdout", "syslog": "syslog", "syslog=/run/log": "syslog=/run/log", "file=/var/log/a=b": "file=/var/log/a=b",
		"exec=./page.sh,arg=a=b,arg=": "exec=./page.sh", "exec=/bin/true,timeout=1m": "exec=/bin/true",
		"webhook=https://h.example/services/secret?token=x":              "webhook=https://h.example",
		"webhook=http://[::1]:8080,secret-file=/a,user=b,password-env=C": "webhook=http://[::1]:8080",
		"alertmanager=https://h.example:9093/am,ca-file=/a,token-env=T":  "alertmanager=https://h.example:9093",
		"otlp=https://h.example:4318/hidden,token-env=T":                 "otlp=https://h.example:4318",
		"webhook,url-file=/a,ca-file=/b":                                 "webhook", "alertmanager,url-env=A": "alertmanager",
		"webhook=https://h.example/a%2Cb,secret-env=A,ca-file=/with=sign": "webhook=https://h.example",
	} {
		s, err := Parse(text)
		if err != nil || s.Name() != want {
			t.Errorf("%s: %q, %v", text, s.Name(), err)
		}
	}
}

// TestParseErrors checks what is refused, and that no secret is repeated.
func TestParseErrors(t *testing.T) {
	for text, want := range map[string]string{
		"":                                 `no such kind ""`,
		"web=http://h":                     `no such kind "web"`,
		"stdout=a":                         "read sink stdout: nothing stands behind it",
		"stdout,a=b":                       "it takes no options",
		"file":                             "read sink file: PATH is missing",
		"file=":                            "PATH is missing",
		"syslog=":                          "PATH is missing",
		"exec":                             "COMMAND is missing",
		"webhook":                          "URL is missing",
		"webhook=h.example":                "the URL doesn't begin with http:// or https://",
		"webhook=http://h,url-env=A":       "the URL is given twice",
		"webhook,url-env=A,url-file=/a":    "url-file and url-env exclude each other",
		"webhook,secret-env=A":             "URL is missing",
		"file,url-env=A":                   "it takes no options",
		"webhook=ftp://hidden":             "doesn't begin with http://",
		"webhook=http://":                  "the URL has no host",
		"webhook=http://h:hidden/":         "the URL isn't one",
		"webhook=http://me:hidden@h/":      "everybody can read a user and a password in a URL",
		"webhook=http://hidden@h/":         "everybody can read a user and a password in a URL",
		"webhook=http://h/#part":           "fragment",
		"webhook=http://h,":                "no such option",
		"webhook=http://h,secret=hidden":   `no such option "secret"`,
		"webhook=http://h,password=hidden": `no such option "password"`,
		"webhook=http://h/a,b":             "no such option",
		"webhook=http://h,secret-file":     "secret-file= has no value",
		"webhook=http://h,secret-file=":    "secret-file= has no value",
		"webhook=http://h,user=a,user=b":   "user= is given twice",
		"webhook=http://h,user=a":          "a user and a password belong together",
		"webhook=http://h,password-env=A":  "a user and a password belong together",
		"webhook=http://h,token-env=A,token-file=/a":                    "token-file and token-env exclude each other",
		"webhook=http://h,user=a,password-env=A,token-env=B":            "a password and a key exclude each other",
		"webhook=http://h,ca-file=/a":                                   "ca-file is for https://",
		"elasticsearch=https://h:9200/":                                 "the URL has no index",
		"elasticsearch=https://h:9200/a,token-env=A":                    `no such option "token-env"`,
		"elasticsearch=https://h/a,api-key-env=A,user=a,password-env=B": "a password and a key exclude",
		"otlp=http://h,api-key-env=A":                                   "no such option",
		"alertmanager=http://h,secret-env=A":                            "no such option",
		"exec=/bin/true,timeout=0s":                                     "timeout",
		"exec=/bin/true,timeout=soon":                                   `timeout "soon" isn't a time above 0`,
	} {
		_, err := Parse(text)
		if !errors.Is(err, fault.ErrUsage) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error()+strings.Join(fault.Hints(err), ""), "hidden") {
			t.Errorf("%s: %v, %v", text, err, fault.Hints(err))
		}
	}
}

// TestOpenErrors checks what is found out before anything starts.
func TestOpenErrors(t *testing.T) {
	dir := t.TempDir()
	notRunnable, empty, long := write(t, "a", "x"), write(t, "b", "\n"), write(t, "c", "one\ntwo\n")
	for text, want := range map[string]error{
		"file=" + dir:                                                fault.ErrUsage,
		"file=" + dir + "/none/log":                                  fault.ErrNotFound,
		"exec=" + dir + "/none":                                      fault.ErrNotFound,
		"exec=no-such-command-of-bpfnet":                             fault.ErrNotFound,
		"exec=" + notRunnable:                                        fault.ErrPermission,
		"webhook=https://h,ca-file=" + dir + "/none":                 fault.ErrNotFound,
		"webhook=https://h,ca-file=" + notRunnable:                   fault.ErrUsage,
		"webhook=https://h,secret-file=" + dir + "/none":             fault.ErrNotFound,
		"webhook=https://h,secret-file=" + empty:                     fault.ErrUsage,
		"webhook=https://h,token-file=" + long:                       fault.ErrUsage,
		"webhook=https://h,secret-env=NO_SUCH_VARIABLE_X":            fault.ErrUsage,
		"webhook,url-file=" + dir + "/none":                          fault.ErrNotFound,
		"webhook,url-file=" + write(t, "url", "http://me:hidden@h"):  fault.ErrUsage,
		"elasticsearch,url-file=" + write(t, "url", "http://h"):      fault.ErrUsage,
		"webhook,ca-file=/a,url-file=" + write(t, "url", "http://h"): fault.ErrUsage,
		"webhook=https://h,user=a,password-file=" + dir:              fault.ErrUsage,
	} {
		s, err := Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		before, err := Parse("file=" + dir + "/first")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Open([]Spec{before, s}, Options{Getenv: os.Getenv, ReadFile: os.ReadFile}); !errors.Is(err, want) || strings.Contains(err.Error(), "hidden") {
			t.Errorf("%s: %v", text, err)
		}
	}
}
