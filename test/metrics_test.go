package test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// exporter is a bpfnet export prometheus that runs.
type exporter struct {
	*testing.T
	cmd     *exec.Cmd
	address string
	notes   *strings.Builder
	ended   chan struct{} // its stderr has ended
}

// exporting are the words of a command that serves metrics.
var exporting = []string{"export", "prometheus", "--listen", "127.0.0.1:0"}

// export serves metrics until the end of the test.
func (n node) export(t *testing.T, args ...string) exporter {
	t.Helper()
	return newExporter(t, n.bpfnet(append(exporting, args...)...))
}

func newExporter(t *testing.T, cmd *exec.Cmd) exporter {
	t.Helper()
	e := exporter{T: t, cmd: cmd, notes: &strings.Builder{}, ended: make(chan struct{})}
	stderr, err := e.cmd.StderrPipe()
	if err == nil {
		err = e.cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.end(syscall.SIGTERM) })
	lines := bufio.NewScanner(stderr)
	for e.address == "" && lines.Scan() {
		e.notes.WriteString(lines.Text() + "\n")
		if found := servedAt.FindStringSubmatch(lines.Text()); found != nil {
			e.address = found[1]
		}
	}
	if e.address == "" {
		t.Fatalf("nothing is served: %s", e.notes)
	}
	go func() {
		defer close(e.ended)
		for lines.Scan() {
			e.notes.WriteString(lines.Text() + "\n")
		}
	}()
	return e
}

var servedAt = regexp.MustCompile(`^note: metrics are served at (\S+),`)

// end ends it by a signal, which must end it well.
func (e exporter) end(signal os.Signal) {
	if e.cmd.ProcessState != nil {
		return
	}
	_ = e.cmd.Process.Signal(signal)
	<-e.ended
	if err := e.cmd.Wait(); err != nil {
		e.Errorf("%v: %s", err, e.notes)
	}
}

func (e exporter) text() string {
	e.Helper()
	answer, err := http.Get("http://" + e.address + "/metrics")
	if err != nil {
		e.Fatalf("%v: %s", err, e.notes)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != http.StatusOK {
		e.Fatalf("%s, %v: %s", answer.Status, err, body)
	}
	return string(body)
}

// sum adds up the series of a text that have all these labels, and counts them.
func sum(text, metric string, labels ...string) (total uint64, series int) {
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, metric+"{") {
			continue
		}
		has := true
		for _, label := range labels {
			has = has && strings.Contains(line, label)
		}
		if value, err := strconv.ParseFloat(line[strings.LastIndex(line, " ")+1:len(line)-1], 64); has && err == nil {
			total, series = total+uint64(value), series+1
		}
	}
	return total, series
}

// last is what series with labels have in the last scrape that has them. The kernel
// takes a moment to take a program off what has gone.
func (e exporter) last(metric string, labels ...string) (last device) {
	e.Helper()
	for range 100 {
		text := e.text()
		if _, series := sum(text, metric, labels...); series == 0 {
			return last
		}
		last = passed(text, metric, labels...)
		time.Sleep(50 * time.Millisecond)
	}
	e.Errorf("%s %q never goes", metric, labels)
	return last
}

const (
	podBytes   = "bpfnet_pod_network_io_bytes_total"
	podPackets = "bpfnet_pod_network_io_packets_total"
)

// passed are the bytes in series with labels.
func passed(text, metric string, labels ...string) device {
	out, _ := sum(text, metric, append(labels, `network_io_direction="transmit"`)...)
	in, _ := sum(text, metric, append(labels, `network_io_direction="receive"`)...)
	return device{out, in}
}

// rows adds up the rows of Pods.
func (p pods) rows() (total device) {
	for _, one := range p.Pods {
		total.transmit, total.receive = total.transmit+one.Transmit, total.receive+one.Receive
	}
	return total
}

// Metrics are what watch pods says, and what the interface has counted, also from an
// exporter that starts later; what is loaded meanwhile is there; and an interface that
// goes is told once more.
func TestMetricsEqualTheInterface(t *testing.T) {
	n := newNode(t)
	id := containerID(t)
	container(t, n.podA, "docker/"+id, "sleep", "1000")
	before := n.attachUnseen(t)
	e := n.export(t)
	n.sh(t, `
nsenter --net=/run/netns/$POD_B iperf3 -s -D -I /tmp/$POD_B.pid >/dev/null
trap 'kill $(tr -d "\0" < /tmp/$POD_B.pid)' EXIT
until nsenter --net=/run/netns/$POD_B ss -Hltn "sport = :5201" | grep -q .; do sleep 0.05; done
A="nsenter --net=/run/netns/$POD_A"
$A iperf3 -c 10.77.0.5 -n 20M >/dev/null
$A iperf3 -c fd77::5 -n 5M -R >/dev/null
$A ping -c 3 -i 0.2 -q 10.77.0.5 >/dev/null`)

	check := func(when string, e exporter) string {
		t.Helper()
		var text string
		var counted pods
		after := n.quiet(t, func() device {
			text, counted = e.text(), n.pods(t)
			return n.device(t, "veth-a")
		})
		rows := counted.rows()
		labels := []string{`container_id="` + id + `"`, `network_interface_name="veth-a"`, `observed_at="tc"`, `program="pod-traffic"`}
		pod, none := passed(text, podBytes, labels...), passed(text, "bpfnet_unattributed_bytes_total")
		want := device{transmit: after.transmit - before.transmit, receive: after.receive - before.receive}
		if all := (device{pod.transmit + none.transmit, pod.receive + none.receive}); all != want || want.transmit < 10e6 {
			t.Errorf("%s: metrics %+v, the interface %+v", when, all, want)
		}
		if pod != rows || len(counted.Pods) < 2 {
			t.Errorf("%s: metrics %+v, watch pods %+v", when, pod, rows)
		}
		if _, series := sum(text, podBytes); series != 2 {
			t.Errorf("%s: %d series for two addresses in two directions", when, series)
		}
		if packets := passed(text, podPackets, labels...); packets.transmit < 1000 {
			t.Errorf("%s: %+v packets", when, packets)
		}
		if failed, _ := sum(text, "bpfnet_scrape_errors_total"); failed != 0 {
			t.Errorf("%s: errors: %s", when, e.notes)
		}
		return text
	}
	first := check("first", e)
	for _, address := range []string{addressA, addressB, "fd77::"} {
		if strings.Contains(first, address) {
			t.Errorf("%s is in the labels", address)
		}
	}
	check("another exporter", n.export(t))

	if strings.Contains(first, "xdp-counter") {
		t.Error("xdp-counter isn't loaded")
	}
	n.must(t, "load", "xdp-counter")
	n.must(t, "attach", "xdp", "xdp-counter", "--dev", "veth-a", "--mode", "generic")
	n.sh(t, "nsenter --net=/run/netns/$POD_A ping -c 3 -i 0.2 -q 10.77.0.5 >/dev/null")
	if pings, _ := sum(e.text(), "bpfnet_interface_network_io_packets_total", `network_interface_name="veth-a"`, `network_transport="icmp",network_type="ipv4"`); pings != 3 {
		t.Errorf("xdp-counter: %d pings", pings)
	}
	n.must(t, "unload", "xdp-counter", "--detach")

	n.sh(t, "ip -n $HOST link del veth-a")
	last := e.last(podBytes, `container_id="`+id+`"`)
	if was := passed(first, podBytes); last.transmit < was.transmit || last.receive < was.receive {
		t.Errorf("at last %+v, before %+v", last, was)
	}
	e.end(os.Interrupt)
}

// At cgroups each cgroup has a series, which goes with it.
func TestMetricsOfCgroups(t *testing.T) {
	n := newNode(t)
	id := containerID(t)
	pid := container(t, n.podA, "docker/"+id, "ping", "-q", "-i0.05", addressB)
	cgroup := strings.TrimSpace(n.sh(t, fmt.Sprintf("echo $(sed -n 's/^0:://p' /proc/%d/cgroup)", pid)))
	n.must(t, "load", "pod-traffic")
	n.must(t, "attach", "cgroup", "pod-traffic", "--container", id)
	e := n.export(t)
	time.Sleep(300 * time.Millisecond)
	labels := []string{`container_id="` + id + `"`, `observed_at="cgroup"`, `cgroup_id="`}
	if got := passed(e.text(), podPackets, labels...); got.transmit < 3 || got.receive < 3 {
		t.Errorf("%+v packets in %s", got, e.text())
	}
	mount := strings.TrimSpace(n.sh(t, "findmnt -nt cgroup2 -o TARGET | head -1"))
	n.sh(t, fmt.Sprintf("kill -9 %d; for i in $(seq 100); do rmdir %s && exit 0 2>/dev/null; sleep 0.05; done; exit 1", pid, mount+cgroup))
	if last := e.last(podPackets, labels...); last.transmit < 3 {
		t.Errorf("at last %+v", last)
	}
}

// Whom a container contacts is a number, and what it begins and others begin counters.
func TestMetricsOfPeers(t *testing.T) {
	n := newNode(t)
	id := containerID(t)
	container(t, n.podA, "docker/"+id, "sleep", "1000")
	n.must(t, "load", "peers")
	n.must(t, "attach", "tc", "peers", "--dev", "veth-a", "--direction", "both")
	e := n.export(t)
	n.sh(t, `
nsenter --net=/run/netns/$POD_A ping -c1 -q 10.77.0.5 >/dev/null
nsenter --net=/run/netns/$POD_A ping -c1 -q fd77::5 >/dev/null
for port in 7 8 9; do
	nsenter --net=/run/netns/$POD_A bash -c "</dev/tcp/10.77.0.5/$port" 2>/dev/null && exit 1
done
nsenter --net=/run/netns/$POD_B ping -c1 -q 10.77.0.4 >/dev/null`)
	text := e.text()
	labels := []string{`container_id="` + id + `"`, `network_interface_name="veth-a"`, `observed_at="tc"`, `program="peers"`}
	if peers, series := sum(text, "bpfnet_pod_distinct_peers", labels...); peers != 2 || series != 1 {
		t.Errorf("%d peers in %d series", peers, series)
	}
	if got, want := passed(text, "bpfnet_pod_connections_total", labels...), (device{transmit: 5, receive: 1}); got != want {
		t.Errorf("connections %+v, want %+v", got, want)
	}
	if strings.Contains(text, addressB) {
		t.Error("an address is in the metrics")
	}
}

// A scrape answers in its time also while something else holds the lock, and says so.
func TestMetricsWhileLocked(t *testing.T) {
	n := newNode(t)
	n.must(t, "load", "pod-traffic")
	e := n.export(t)
	release := make(chan struct{})
	var held sync.WaitGroup
	hold := exec.Command("flock", n.root, "sh", "-c", "echo held; cat")
	in, _ := hold.StdinPipe()
	out, err := hold.StdoutPipe()
	if err == nil {
		err = hold.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	held.Go(func() { <-release; in.Close(); _ = hold.Wait() })
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "held\n" {
		t.Fatal(line, err)
	}
	request, err := http.NewRequest(http.MethodGet, "http://"+e.address+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("X-Prometheus-Scrape-Timeout-Seconds", "1")
	start := time.Now()
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if took := time.Since(start); err != nil || took > time.Second || !strings.Contains(string(body), `bpfnet_scrape_success{source="instances"} 0`) {
		t.Errorf("after %v, %v: %s", took, err, body)
	}
	close(release)
	held.Wait()
	if text := e.text(); !strings.Contains(text, `bpfnet_scrape_success{source="instances"} 1`) || !strings.Contains(text, `bpfnet_scrape_errors_total{source="instances"} 1`) {
		t.Errorf("afterwards: %s", text)
	}
}

// prometheus returns the folder with Debian's prometheus and promtool.
var prometheus = sync.OnceValues(func() (string, error) {
	out, err := exec.Command("./prometheus").Output()
	return strings.TrimSpace(string(out)), err
})

// A real Prometheus scrapes, and has what watch pods says; promtool finds nothing wrong
// with the metrics.
func TestPrometheus(t *testing.T) {
	commands, err := prometheus()
	if err != nil {
		t.Skipf("Debian's package of Prometheus can't be fetched: %v", err)
	}
	n := newNode(t)
	id := containerID(t)
	container(t, n.podA, "docker/"+id, "sleep", "1000")
	for _, program := range []string{"pod-traffic", "xdp-counter", "port-filter", "dns"} {
		n.must(t, "load", program)
	}
	n.must(t, "attach", "tc", "pod-traffic", "--dev", "veth-a", "--direction", "both")
	n.must(t, "blocklist", "add", "198.51.100.7")
	n.must(t, "ports", "deny", "9/udp")
	e := n.export(t, "--run-stats")
	n.sh(t, "nsenter --net=/run/netns/$POD_A ping -c 5 -i 0.2 -q 10.77.0.5 >/dev/null")
	check := exec.Command(filepath.Join(commands, "promtool"), "check", "metrics")
	check.Stdin = strings.NewReader(e.text())
	if out, err := check.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("%v: %s", err, out)
	}

	dir, at := t.TempDir(), freeAddress(t)
	config := fmt.Sprintf("scrape_configs: [{job_name: bpfnet, scrape_interval: 1s, scrape_timeout: 1s, static_configs: [{targets: ['%s']}]}]", e.address)
	if err := os.WriteFile(filepath.Join(dir, "prometheus.yml"), []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	server := exec.Command(filepath.Join(commands, "prometheus"), "--config.file", filepath.Join(dir, "prometheus.yml"),
		"--storage.tsdb.path", filepath.Join(dir, "data"), "--web.listen-address", at, "--log.level", "error")
	serve(t, server)
	var got, want string
	for range 100 { // a Pod sends now and then by itself
		rows := n.pods(t).rows()
		got = query(at, `sum by (network_io_direction) (`+podBytes+`{job="bpfnet",container_id="`+id+`"})`)
		want = fmt.Sprintf("receive %d transmit %d ", rows.receive, rows.transmit)
		if got == want {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Errorf("Prometheus has %q, watch pods %q", got, want)
}

// Pods of a real containerd have their names; one made anew under the name of one that
// went has series of its own, of which none ever falls.
func TestMetricsOfPods(t *testing.T) {
	n := newContainerd(t)
	run := func(name string) (pod, talker) {
		p := n.runPod(n.podConfig(name, newUID(t), "besteffort"), name)
		return p, n.newTalker(p)
	}
	n.must("load", "pod-traffic")
	attach := func() { n.must("attach", "tc", "pod-traffic", "--all-pods", "--direction", "both") }
	_, client := run("client")
	old, web := run("web")
	attach()
	n.must("attach", "cgroup", "pod-traffic", "--container", web.container)
	n.send(client, web, web.addresses[0])

	e := newExporter(t, n.bpfnet(exporting...))
	of := func(p talker) []string {
		return []string{`k8s_namespace_name="` + *p.Pod.Namespace + `"`, `k8s_pod_name="` + *p.Pod.Name + `"`, `k8s_pod_uid="` + p.Pod.UID + `"`}
	}
	at := func(p talker, point string) []string { return append(of(p), `observed_at="`+point+`"`) }
	text := e.text()
	first := passed(text, podBytes, append(at(web, "tc"), `network_interface_name="`+web.dev+`"`)...)
	var rows podCounters
	for _, address := range web.addresses {
		rows = rows.plus(n.watchPods("pod-traffic", "--observe", "tc").of(address, ""))
	}
	if first.receive < sent || first.receive > rows.ReceiveBytes {
		t.Errorf("metrics %+v, watch pods %+v", first, rows)
	}
	inner := passed(text, podBytes, append(at(web, "cgroup"), `container_id="`+web.container+`"`, `container_name="web"`, `cgroup_id="`+web.cgroupID+`"`)...)
	if inner.receive < sent || inner.receive >= first.receive {
		t.Errorf("at the cgroup %+v, at tc %+v", inner, first)
	}

	n.remove(old)
	_, again := run("web")
	attach()
	n.send(client, again, again.addresses[0])
	if last := e.last(podBytes, at(web, "tc")...); last.receive < first.receive {
		t.Errorf("at last %+v, before %+v", last, first)
	}
	text = e.text()
	if anew := passed(text, podBytes, at(again, "tc")...); anew.receive < sent || again.Pod.UID == web.Pod.UID {
		t.Errorf("made anew: %+v", anew)
	}
	if strings.Contains(text, web.Pod.UID) {
		t.Error("a Pod that has gone is still there")
	}
	if passed(text, podBytes, at(client, "tc")...).transmit < 2*sent {
		t.Error("the client isn't counted")
	}
}

// The rules of alerts are right, and the dashboard's expressions are understood.
func TestDeployed(t *testing.T) {
	commands, err := prometheus()
	if err != nil {
		t.Skipf("Debian's package of Prometheus can't be fetched: %v", err)
	}
	for _, args := range [][]string{{"check", "rules", "../deploy/prometheus/alerts.yml"}, {"test", "rules", "../deploy/prometheus/alerts.test.yml"}} {
		if out, err := exec.Command(filepath.Join(commands, "promtool"), args...).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	}
	text, err := os.ReadFile("../deploy/grafana/bpfnet.json")
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Panels []struct {
			ID      int
			Title   string
			GridPos struct{ X, Y int }
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(text, &dashboard); err != nil || len(dashboard.Panels) == 0 {
		t.Fatalf("%v: %s", err, text)
	}
	variables := strings.NewReplacer("$__rate_interval", "1m", "$instance", ".*", "$observed_at", "tc")
	var rules strings.Builder
	rules.WriteString("groups: [{name: dashboard, rules: [\n")
	taken := map[any]string{}
	for i, panel := range dashboard.Panels {
		for _, what := range []any{panel.ID, panel.GridPos} {
			if taken[what] != "" {
				t.Errorf("%q and %q both have %v", taken[what], panel.Title, what)
			}
			taken[what] = panel.Title
		}
		for j, target := range panel.Targets {
			fmt.Fprintf(&rules, "{record: panel%d:%d, expr: '%s'},\n", i, j, variables.Replace(target.Expr))
		}
	}
	rules.WriteString("]}]\n")
	file := filepath.Join(t.TempDir(), "rules.yml")
	if err := os.WriteFile(file, []byte(rules.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(filepath.Join(commands, "promtool"), "check", "rules", file).CombinedOutput(); err != nil {
		t.Errorf("%v: %s of\n%s", err, out, rules.String())
	}
}

// An instance that can't be read doesn't hide the others.
func TestMetricsOfDamage(t *testing.T) {
	n := newNode(t)
	n.must(t, "load", "xdp-counter", "--name", "damaged")
	n.must(t, "load", "pod-traffic")
	n.must(t, "attach", "tc", "pod-traffic", "--dev", "veth-a", "--direction", "both")
	n.sh(t, "rm $BPFNET_BPFFS/damaged/maps/packets; mkdir $BPFNET_BPFFS/damaged/maps/packets; nsenter --net=/run/netns/$POD_A ping -c1 -q 10.77.0.5 >/dev/null")
	text := n.export(t).text()
	if pod := passed(text, podPackets); pod.transmit == 0 || !strings.Contains(text, `bpfnet_scrape_success{source="instances"} 0`) {
		t.Error(text)
	}
}

// freeAddress is an address that nobody listens at.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// query asks a Prometheus, and returns values by direction, "" while it has none.
func query(at, expression string) string {
	answer, err := http.Get("http://" + at + "/api/v1/query?query=" + url.QueryEscape(expression))
	if err != nil {
		return err.Error()
	}
	defer answer.Body.Close()
	var doc struct {
		Data struct {
			Result []struct {
				Metric map[string]string
				Value  [2]any
			}
		}
	}
	if err := json.NewDecoder(answer.Body).Decode(&doc); err != nil {
		return err.Error()
	}
	text := ""
	for _, one := range doc.Data.Result {
		text += fmt.Sprintf("%s %s ", one.Metric["network_io_direction"], one.Value[1])
	}
	return text
}
