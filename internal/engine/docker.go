package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
)

// askDocker asks a server of Docker's API, which Podman has, too.
func askDocker(ctx context.Context, path string) ([]Container, error) {
	c, err := connect(ctx, path)
	if err != nil {
		return nil, err
	}
	defer c.close()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost/containers/json", nil)
	if err != nil {
		return nil, err
	}
	response, err := c.RoundTrip(request)
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
		return nil, errNonsense
	}
	source := Docker
	if response.Header.Get("Libpod-Api-Version") != "" {
		source = Podman
	}
	var found []Container
	for _, c := range list {
		if c.Labels == nil {
			c.Labels = map[string]string{}
		}
		found = append(found, Container{ID: c.ID, Engine: string(source), Source: source, Name: dockerName(c.Names), Labels: c.Labels})
	}
	return found, nil
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
