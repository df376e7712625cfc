package flow

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"
)

// Events of connections through a router tell whom its NAT has them talk to, at both ends,
// also of those that are closed before anybody looks.
func TestNATOfEvents(t *testing.T) {
	for _, masquerade := range []bool{false, true} {
		t.Run(fmt.Sprintf("masquerade=%v", masquerade), func(t *testing.T) {
			n := newNetwork(t, "", masquerade)
			if take(t, n.sampler).Backend.Store == Polling {
				t.Skip("this kernel has no flows: there are no events")
			}
			source, notes, err := OpenEvents(context.Background(), n.engine, EventsRequest{Instance: "absent"})
			n.client.must(err)
			if len(notes) == 0 || notes[0] != begins("absent") { // behind it, which mechanisms were refused
				t.Errorf("notes: %q", notes)
			}
			t.Cleanup(func() { _ = source.Close() })

			l := n.listen("10.78.2.2:8080")
			for _, atOnce := range []bool{false, true} {
				client := n.dial("tcp", "10.96.0.1:80")
				accepted, err := l.Accept()
				n.client.must(err)
				ends := map[string]string{
					fmt.Sprintf("%v to 10.96.0.1:80", client.LocalAddr()):      "10.78.2.2:8080",
					fmt.Sprintf("10.78.2.2:8080 to %v", accepted.RemoteAddr()): original(client.LocalAddr(), accepted.RemoteAddr()),
				}
				if !atOnce {
					n.events(source, kind("opened", ends))
				}
				_ = client.Close()
				_ = accepted.Close()
				want := kind("closed", ends)
				if atOnce {
					maps.Copy(want, kind("opened", ends))
				}
				n.events(source, want)
			}
		})
	}
}

func kind(kind string, ends map[string]string) map[string]string {
	all := map[string]string{}
	for which, nat := range ends {
		all[kind+" "+which] = nat
	}
	return all
}

// events waits for the events of the client's and the server's sockets, and checks whom
// the peers were translated to.
func (n *network) events(source EventSource, want map[string]string) {
	n.t.Helper()
	got := map[string]string{}
	for end := time.Now().Add(3 * time.Second); len(got) < len(want) && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		events, _, err := source.Read(false)
		n.client.must(err)
		for _, e := range events {
			r := e.Rows[0]
			if r.NetNS != n.client.inode && r.NetNS != n.server.inode {
				continue
			}
			nat := ""
			if r.NAT.IsValid() {
				nat = r.NAT.String()
			}
			got[fmt.Sprintf("%s %v to %v", e.Kind, r.Local, r.Peer)] = nat
		}
	}
	if !maps.Equal(got, want) {
		n.t.Errorf("%v, want %v", lines(got), lines(want))
	}
}

func lines(of map[string]string) (all []string) {
	for _, key := range slices.Sorted(maps.Keys(of)) {
		all = append(all, key+" is "+of[key])
	}
	return all
}
