package dns

import (
	"bufio"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"bpfnet/internal/fault"
)

const defaultConfig = "/etc/resolv.conf"

// configs is where else servers may be named: by systemd-resolved those that it asks
// itself, and those of network namespaces (ip-netns(8)).
var configs = []string{defaultConfig, "/run/systemd/resolve/resolv.conf", "/etc/netns/*/resolv.conf"}

// Servers lists the addresses of the DNS servers that the machine's files name. What
// can't be read names none.
func Servers() []netip.Addr { return serversIn(configs) }

func serversIn(patterns []string) (servers []netip.Addr) {
	for _, pattern := range patterns {
		files, _ := filepath.Glob(pattern) // the patterns are fine
		for _, file := range files {
			c, _ := readConfig(file)
			for _, server := range c.servers {
				if !slices.Contains(servers, server.Addr()) {
					servers = append(servers, server.Addr())
				}
			}
		}
	}
	return servers
}

// What the system's resolver takes at most of resolv.conf(5).
const (
	mostServers  = 3
	mostTimeout  = 30 // seconds
	mostAttempts = 2  // fewer than its 5: a silent server holds up others
)

// config is what resolv.conf says about servers.
type config struct {
	servers  []netip.AddrPort
	timeout  time.Duration // of one question
	attempts int           // at each server
	rotate   bool          // each question begins at another server
}

func readConfig(path string) (config, error) {
	if path == "" {
		path = defaultConfig
	}
	c := config{timeout: 5 * time.Second, attempts: mostAttempts}
	file, err := os.Open(path)
	if err != nil {
		return c, fmt.Errorf("read which DNS servers there are: %w", err)
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		c.line(strings.Fields(lines.Text()))
	}
	if err := lines.Err(); err != nil {
		return c, fmt.Errorf("read which DNS servers there are: %s: %w", path, err)
	}
	if len(c.servers) == 0 {
		return c, fault.New(fault.ErrNotFound, "no DNS server in %s", path).Hint("add a line \"nameserver ADDRESS\" to it")
	}
	return c, nil
}

// line takes what a line means; what is unknown or wrong is ignored, as the
// system's resolver does.
func (c *config) line(fields []string) {
	switch {
	case len(fields) < 2:
	case fields[0] == "nameserver" && len(c.servers) < mostServers:
		if addr, err := netip.ParseAddr(fields[1]); err == nil {
			c.servers = append(c.servers, netip.AddrPortFrom(addr, 53))
		}
	case fields[0] == "options":
		for _, option := range fields[1:] {
			c.option(option)
		}
	}
}

func (c *config) option(option string) {
	name, value, _ := strings.Cut(option, ":")
	n, err := strconv.Atoi(value)
	switch {
	case name == "rotate":
		c.rotate = true
	case err != nil:
	case name == "timeout":
		c.timeout = time.Duration(min(max(n, 1), mostTimeout)) * time.Second
	case name == "attempts":
		c.attempts = min(max(n, 1), mostAttempts)
	}
}
