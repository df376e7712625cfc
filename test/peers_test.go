package test

import (
	"fmt"
	"strings"
	"testing"
)

// A Pod has the peers that it has contacted itself, under its own name, at each point;
// the server that it asked has none.
func TestPeersOfPods(t *testing.T) {
	n := newNode(t)
	web, path := place(t)
	server, serverPath := place(t)
	dir := t.TempDir()
	container(t, n.podA, path, "bash", "-c", fmt.Sprintf(`
until [ -e %[1]s/begin ]; do sleep 0.05; done
ping -q -c3 -i0.2 %[2]s
for address in %[2]s fd77::5; do (exec 3<>/dev/tcp/$address/81); done
touch %[1]s/end
exec sleep 600`, dir, addressB))
	container(t, n.podB, serverPath, "sleep", "600")
	n.must(t, "load", "peers")
	n.sh(t, `
follow="nsenter --net=/run/netns/$HOST bpfnet attach tc peers --all-pods --follow -q -o ndjson"
timeout -s INT 20 $follow | head -n 2 | jq -es 'map(.event) == ["attached", "attached"]'`)
	if r := n.onHost("attach", "cgroup", "peers", "--pod", web); r.code != 0 {
		t.Fatal(r.stderr)
	}
	n.sh(t, fmt.Sprintf("touch %[1]s/begin; until [ -e %[1]s/end ]; do sleep 0.05; done", dir))
	for _, point := range []string{"tc", "cgroup"} {
		doc := n.onHost("watch", "peers", "--once", "--observe", point, "--pod", web, "-o", "json").stdout
		got := jq(t, `.peers | map("\(.pod_uid) \(.address) \(.transport) \(.peer.address) \(.peer.port) \(.attempts) \(.answers) \(.refusals)") | sort | join("\n")`, doc)
		want := strings.ReplaceAll(`UID 10.77.0.4 icmp 10.77.0.5 null 1 1 0
UID 10.77.0.4 tcp 10.77.0.5 81 1 0 1
UID fd77::4 tcp fd77::5 81 1 0 1`, "UID", web)
		if got != want {
			t.Errorf("at %s:\n%s\nwant\n%s", point, got, want)
		}
	}
	doc := n.onHost("watch", "peers", "--once", "--observe", "tc", "--pod", server, "--address", addressB, "-o", "json").stdout
	if got := jq(t, `"\(.peers | length) \(.endpoints[] | "\(.connections_opened) \(.connections_received)")"`, doc); got != "0 0 2" {
		t.Errorf("the server has %s", got)
	}
	n.must(t, "unload", "peers", "--detach")
}
