package test

import (
	"fmt"
	"strings"
	"testing"
)

// What is dropped is a Pod's by its socket, also at the host side of its interface, and
// without a socket by the network namespace; the process that has sent it is named.
func TestDropsOfPods(t *testing.T) {
	n := newNode(t)
	web, path := place(t)
	server, serverPath := place(t)
	dir := t.TempDir()
	container(t, n.podA, path, "bash", "-c", fmt.Sprintf(`
until [ -e %[1]s/begin ]; do sleep 0.05; done
exec 3<>/dev/udp/%[2]s/911 4<>/dev/udp/%[2]s/912
for i in 1 2 3; do echo >&3; done
echo >&4
touch %[1]s/end
exec sleep 600 3>&3`, dir, addressB))
	container(t, n.podB, serverPath, "sleep", "600")
	n.must(t, "load", "port-filter")
	n.must(t, "ports", "deny", "911/udp")
	if r := n.onHost("attach", "tc", "port-filter", "--dev", "veth-a", "--direction", "ingress"); r.code != 0 {
		t.Fatal(r.stderr)
	}
	n.must(t, "load", "drops")
	n.must(t, "attach", "trace", "drops")
	n.sh(t, fmt.Sprintf("touch %[1]s/begin; until [ -e %[1]s/end ]; do sleep 0.05; done", dir))
	row := `map(select(.network.destination.port == (911, 912))) | map("\(.network.destination.port) \(.packets) \(.direction) \(.devname) \(.pod_uid) \(.process.command)") | sort | join("\n")`
	doc := n.onHost("watch", "drops", "--once", "--pod", web, "-o", "json").stdout
	if got, want := jq(t, ".drops | "+row, doc), fmt.Sprintf("911 3 ingress veth-a %s sleep", web); got != want {
		t.Errorf("of the Pod that sends:\n%s\nwant\n%s", got, want)
	}
	doc = n.onHost("watch", "drops", "--once", "--pod", server, "-o", "json").stdout
	if got := jq(t, ".drops | "+row, doc); !strings.HasPrefix(got, "912 1 ingress ") || !strings.Contains(got, server) {
		t.Errorf("of the Pod without the port:\n%s", got)
	}
	n.must(t, "unload", "--all", "--detach")
}
