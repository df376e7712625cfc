package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
)

// askDocker asks a server of Docker's API, which Podman has, too.
func askDocker(ctx context.Context, path string) ([]Container, error) {
	toSocket := func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx, path) }
	transport := &http.Transport{DialContext: toSocket, DisableKeepAlives: true}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost/containers/json", nil)
	if err != nil {
		return nil, err
	}
	response, err := transport.RoundTrip(request) // an engine doesn't send elsewhere
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := readAll(response.Body)
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("HTTP status %s", response.Status)
	}
	var list []struct {
		ID     string `json:"Id"`
		Names  []string
		Labels map[string]string
	}
	if err := json.Unmarshal(body, &list); err != nil {
		return nil, errors.New("its answer makes no sense")
	}
	source := Docker
	if response.Header.Get("Libpod-Api-Version") != "" {
		source = Podman
	}
	var found []Container
	for _, c := range list {
		found = append(found, Container{ID: c.ID, Engine: string(source), Source: source, Name: dockerName(c.Names), Labels: orEmpty(c.Labels)})
	}
	return found, nil
}

// readAll reads an answer that isn't too large.
func readAll(r io.Reader) ([]byte, error) {
	body, err := io.ReadAll(io.LimitReader(r, mostBytes+1))
	if err == nil && len(body) > mostBytes {
		err = fmt.Errorf("the answer is larger than %d MiB", mostBytes>>20)
	}
	return body, err
}

// dockerName is a container's own name. Links to it are names, too: "/other/alias".
func dockerName(names []string) string {
	for _, name := range names {
		if name = strings.TrimPrefix(name, "/"); !strings.Contains(name, "/") {
			return name
		}
	}
	return ""
}
