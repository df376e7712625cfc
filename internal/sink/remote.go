package sink

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"bpfnet/internal/fault"
)

// mostAnswer bounds what is read of an answer, in bytes.
const mostAnswer = 1 << 20

// idleTime is how long a connection stays without a request. It is less than what
// servers wait for.
const idleTime = 20 * time.Second

// remote is a server that takes alerts.
type remote struct {
	client *http.Client
	url    string
	auth   func(*http.Request) error
	now    func() time.Time

	mayChange func(status int) bool      // the same request may be answered in another way later
	said      func(answer []byte) string // what an answer that isn't success tells people
}

// openRemote opens the server at a spec's URL, with more of a path.
func openRemote(s Spec, o Options, path ...string) (*remote, error) {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.IdleConnTimeout = idleTime
	if ca := s.value("ca-file"); ca != "" {
		text, err := o.ReadFile(ca)
		if err != nil {
			return nil, asFault(err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(text) {
			return nil, s.wrong("no certificate is in %s", ca).Hint("it has to be in PEM, as openssl x509 prints it")
		}
		transport.TLSClientConfig = &tls.Config{RootCAs: pool}
	}
	r := &remote{
		client: &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
		url:    s.url.String(), now: o.Now, mayChange: mayChange, said: excerpt,
	}
	if len(path) > 0 {
		r.url = s.url.JoinPath(path...).String()
	}
	return r, r.authenticate(s, o)
}

func (r *remote) close() { r.client.CloseIdleConnections() }

// authenticate makes requests carry what a spec says who asks.
func (r *remote) authenticate(s Spec, o Options) error {
	r.auth = func(*http.Request) error { return nil }
	for _, scheme := range []struct{ option, word string }{{"token", "Bearer"}, {"api-key", "ApiKey"}} {
		key, err := newSecret(s, o, scheme.option)
		if err != nil {
			return err
		}
		if key != nil {
			r.auth = func(q *http.Request) error {
				text, err := key()
				q.Header.Set("Authorization", scheme.word+" "+text)
				return err
			}
		}
	}
	password, err := newSecret(s, o, "password")
	if password != nil {
		r.auth = func(q *http.Request) error {
			text, err := password()
			q.SetBasicAuth(s.value("user"), text)
			return err
		}
	}
	return err
}

// secret is read for each request, because what is in files changes.
type secret func() (string, error)

// newSecret returns what NAME-file or NAME-env says, nil if neither is given.
func newSecret(s Spec, o Options, name string) (secret, error) {
	file, variable := s.value(name+"-file"), s.value(name+"-env")
	if file == "" && variable == "" {
		return nil, nil
	}
	read := secret(func() (string, error) {
		text, from := o.Getenv(variable), "the environment's "+variable
		if file != "" {
			from = file
			bytes, err := o.ReadFile(file)
			if err != nil {
				return "", asFault(fmt.Errorf("read %s: %w", name, err))
			}
			text = strings.TrimRight(string(bytes), "\r\n")
		}
		switch {
		case text == "":
			return "", fault.New(fault.ErrUsage, "read %s: nothing is in %s", name, from)
		case strings.ContainsAny(text, "\r\n\x00"):
			return "", fault.New(fault.ErrUsage, "read %s: more than a line is in %s", name, from)
		}
		return text, nil
	})
	_, err := read()
	return read, err
}

// post sends a body and returns the server's answer to it. An answer that isn't
// success makes a result of events.
func (r *remote) post(ctx context.Context, body []byte, header http.Header, events []Event) (answer []byte, failed result) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, r.url, bytes.NewReader(body))
	if err != nil {
		return nil, result{refused: len(events), err: err}
	}
	request.Header = header
	request.Header.Set("User-Agent", "bpfnet")
	if err := r.auth(request); err != nil {
		return nil, result{rest: events, err: err}
	}
	response, err := r.client.Do(request)
	if err != nil {
		return nil, result{rest: events, err: withoutURL(err)}
	}
	defer response.Body.Close()
	answer, err = io.ReadAll(io.LimitReader(response.Body, mostAnswer))
	status := response.StatusCode
	switch {
	case status/100 == 2 && err != nil:
		return nil, result{rest: events, err: withoutURL(err)}
	case status/100 == 2:
		return answer, result{}
	}
	failed.err = fmt.Errorf("it answers %s%s", response.Status, r.said(answer))
	if !r.mayChange(status) {
		failed.refused = len(events)
		return nil, failed
	}
	failed.rest, failed.after = events, r.retryAfter(response.Header)
	return nil, failed
}

// mayChange says whether the same request may be answered in another way later. A
// secret may be put right.
func mayChange(status int) bool {
	switch status {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusRequestTimeout, http.StatusTooManyRequests:
		return true
	}
	return status >= 500
}

// retryAfter is how long a server wants to be left alone.
func (r *remote) retryAfter(h http.Header) time.Duration {
	text := h.Get("Retry-After")
	if seconds, err := strconv.ParseUint(text, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second
	}
	if at, err := http.ParseTime(text); err == nil {
		return max(at.Sub(r.now()), 0)
	}
	return 0
}

// withoutURL is an error without the URL, which may have something secret.
func withoutURL(err error) error {
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		err = wrapped.Err
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("no answer within %s", requestTime)
	}
	return err
}

// excerpt is the beginning of an answer's first line.
func excerpt(answer []byte) string {
	line, _, _ := strings.Cut(strings.TrimSpace(string(answer)), "\n")
	if line == "" {
		return ""
	}
	return ": " + line[:min(len(line), 200)]
}

// jsonHeader says that a body is JSON.
func jsonHeader() http.Header { return http.Header{"Content-Type": {"application/json"}} }
