package commands

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"bpfnet/internal/alert"
	"bpfnet/internal/dns"
)

// dnsDoc is an exchange.
type dnsDoc struct {
	Schema     string         `json:"schema"`
	Time       time.Time      `json:"time"`
	Status     dns.Status     `json:"status"`
	ObservedAt string         `json:"observed_at"`
	DevName    *string        `json:"devname"`
	IfIndex    *uint32        `json:"ifindex"`
	CgroupID   *string        `json:"cgroup_id"`
	K8s        alert.K8s      `json:"k8s"`
	Container  dnsContainer   `json:"container"`
	Process    *alert.Process `json:"process"`
	Network    dnsNetwork     `json:"network"`
	ID         uint16         `json:"id"`
	Name       *string        `json:"name"`
	Type       *string        `json:"type"`
	Class      *string        `json:"class"`
	Rcode      *string        `json:"rcode"`
	Truncated  bool           `json:"truncated"`
	Answers    []dnsRecord    `json:"answers"`
	LatencyUS  *int64         `json:"latency_us"`
	Retries    int            `json:"retries"`
	Loss       dnsLoss        `json:"loss"`
}

type dnsContainer struct {
	ID   *string `json:"id"`
	Name *string `json:"name"`
}

type dnsNetwork struct {
	Transport string `json:"transport"`
	Type      string `json:"type"`
	Client    dnsEnd `json:"client"`
	Server    dnsEnd `json:"server"`
}

type dnsEnd struct {
	Address netip.Addr `json:"address"`
	Port    uint16     `json:"port"`
}

type dnsRecord struct {
	Name       string `json:"name"`
	Type       string `json:"type"`
	TTLSeconds uint64 `json:"ttl_seconds"`
	Data       string `json:"data"`
}

// dnsLoss is what no exchange tells of, since the watch began.
type dnsLoss struct {
	Messages   uint64 `json:"messages"`   // that found no room in the ring buffer
	Exchanges  uint64 `json:"exchanges"`  // that were too many at once
	Malformed  uint64 `json:"malformed"`  // messages that can't be read, or not to their end
	Incomplete uint64 `json:"incomplete"` // pieces of messages
}

func (w *dnsWatch) document(ctx context.Context, x *dns.Exchange) dnsDoc {
	at := x.Place
	doc := dnsDoc{
		Schema: "bpfnet.dns/v1", Time: x.Time.UTC(), Status: x.Status, ObservedAt: "tc",
		Network: dnsNetwork{x.Transport, "ipv4", dnsEnd{x.Client.Addr(), x.Client.Port()}, dnsEnd{x.Server.Addr(), x.Server.Port()}},
		ID:      x.ID, Name: known(x.Name), Type: known(x.Type), Class: known(x.Class), Rcode: known(x.Rcode),
		Truncated: x.Truncated, Answers: []dnsRecord{}, Retries: x.Retries,
	}
	if x.Client.Addr().Is6() {
		doc.Network.Type = "ipv6"
	}
	if at.AtCgroup {
		doc.ObservedAt = "cgroup"
	} else {
		doc.DevName, doc.IfIndex = w.devices.at(ctx, at.IfIndex), &at.IfIndex
	}
	if at.CgroupID != 0 {
		doc.CgroupID = textOf(&at.CgroupID)
	}
	doc.Process, _ = x.About.(*alert.Process)
	w.name(ctx, at, &doc)
	if x.Latency != dns.Unmeasured {
		micros := x.Latency.Microseconds()
		doc.LatencyUS = &micros
	}
	for _, r := range x.Answers {
		doc.Answers = append(doc.Answers, dnsRecord{r.Name, r.Type, uint64(r.TTL / time.Second), r.Data})
	}
	return doc
}

// known is a text, or nil if it is empty.
func known(text string) *string {
	if text == "" {
		return nil
	}
	return &text
}

// name says who asks: as far as the socket's cgroup tells, or else the interface.
func (w *dnsWatch) name(ctx context.Context, at dns.Place, doc *dnsDoc) {
	var interfaces []uint32
	var cgroups []uint64
	if at.FromAsker && !at.AtCgroup {
		interfaces = []uint32{at.IfIndex}
	}
	if at.CgroupID > 1 { // 1 is the root's
		cgroups = []uint64{at.CgroupID}
	}
	_, _ = w.owners.Find(ctx, podsLongest, interfaces, cgroups)
	owner, ok := w.owners.Cgroup(at.CgroupID)
	if !ok && len(interfaces) > 0 {
		owner, _ = w.owners.Interface(at.IfIndex)
	}
	if owner.Pod != nil {
		doc.K8s = alert.K8s{Namespace: owner.Pod.Namespace, Pod: owner.Pod.Name}
	}
	if owner.Container != nil {
		doc.Container = dnsContainer{&owner.Container.ID, owner.Container.Name}
	}
}

// dnsLine is an exchange for people, with what may be long at its end. Who failed to
// answer is there, too.
func dnsLine(at time.Time, d dnsDoc) string {
	outcome, latency := optional(d.Rcode), "-"
	if d.Rcode == nil {
		outcome = string(d.Status)
	}
	if d.LatencyUS != nil {
		latency = strconv.FormatFloat(float64(*d.LatencyUS)/1e3, 'f', 1, 64) + "ms"
	}
	parts := []string{fmt.Sprintf("%s %8s  %-10s  %-5s  %s", at.Format("15:04:05.000"), latency, outcome, optional(d.Type), optional(d.Name))}
	if data := shortAnswers(d.Answers); data != "" {
		parts = append(parts, data)
	}
	if d.Truncated {
		parts = append(parts, "truncated")
	}
	if d.Retries > 0 {
		parts = append(parts, fmt.Sprintf("asked %d times", d.Retries+1))
	}
	parts = append(parts, d.who())
	if outcome != noError {
		parts = append(parts, "@"+d.Network.Server.Address.String())
	}
	return strings.Join(parts, "  ")
}

// shortAnswers is the last record of an answer, which CNAMEs lead to, and how many more
// there are.
func shortAnswers(answers []dnsRecord) string {
	switch n := len(answers); n {
	case 0:
		return ""
	case 1:
		return answers[0].Data
	default:
		return fmt.Sprintf("%s +%d", answers[n-1].Data, n-1)
	}
}

// who is who asks, as people call them.
func (d dnsDoc) who() string {
	id := optional(d.Container.ID)
	container := cmp.Or(optional(d.Container.Name), shortened(id))
	who := cmp.Or(podName(d.K8s.Namespace, d.K8s.Pod, nil), container, d.Network.Client.Address.String())
	if d.Process != nil {
		who += " " + d.Process.String()
	}
	return who
}
