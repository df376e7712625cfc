package commands

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"
)

// TestWatchExposition has all of what a scrape of a watch says.
func TestWatchExposition(t *testing.T) {
	f := scriptFake()
	var stderr bytes.Buffer
	for _, line := range []string{"load blocklist", "load dns", "attach tc blocklist --dev veth-a --direction both", "blocklist add 198.51.100.7"} {
		if exit := Run(context.Background(), f.env(&bytes.Buffer{}, &stderr), strings.Fields(line)); exit != 0 {
			t.Fatalf("%s: %s", line, stderr.String())
		}
	}
	stderr.Reset()
	address := f.served(t, &stderr, "watch alerts --listen 127.0.0.1:0 --sink exec=true --sink exec=false --sink stdout")
	var kept string
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		kept = steady(get(t, "http://"+address+"/metrics"))
		if strings.Contains(kept, `bpfnet_sink_deliveries_total{sink="exec=true"} 2`) && strings.Contains(kept, `bpfnet_sink_refused_total{sink="exec=false"} 2`) {
			break
		}
	}
	goldenMetrics(t, "testdata/watch_metrics.prom", kept)
	if body := get(t, "http://"+address+"/-/healthy"); body != "bpfnet is healthy.\n" {
		t.Errorf("healthy: %q", body)
	}
}

// TestWatchAddress checks where metrics are served that have no port.
func TestWatchAddress(t *testing.T) {
	for text, want := range map[string]string{
		"127.0.0.1": "127.0.0.1:9737", "::1": "[::1]:9737", "[::1]": "[::1]:9737", "127.0.0.1:0": "127.0.0.1:0", ":9000": ":9000", "[::1]:1": "[::1]:1",
		"localhost": "localhost", "": "",
	} {
		if got := watchAddress(text); got != want {
			t.Errorf("%q: %q", text, got)
		}
	}
}
