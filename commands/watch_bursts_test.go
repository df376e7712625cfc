package commands

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
)

// cancelling cancels a context when something is written.
type cancelling struct {
	bytes.Buffer
	cancel func()
}

func (c *cancelling) Write(b []byte) (int, error) {
	c.cancel()
	return c.Buffer.Write(b)
}

// TestReplayInterrupted interrupts a replay of a pipe that stays open: it ends as if
// the recording had.
func TestReplayInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var stderr bytes.Buffer
	stdout := &cancelling{cancel: cancel}
	env := newFake().env(&bytes.Buffer{}, &stderr)
	env.Stdout = stdout
	open, _ := io.Pipe()
	sample := `{"schema":"bpfnet.pods/v1","time":"2026-01-02T03:04:0%dZ","interval_seconds":%s,"observed_at":"tc","loss":{"map_full":0},` +
		`"pods":[{"address":"10.77.0.4","ifindex":4,"transmit_bytes":%d,"transmit_packets":1,"receive_bytes":0,"receive_packets":0}],"others":{"pods":0}}` + "\n"
	env.Stdin = io.MultiReader(strings.NewReader(fmt.Sprintf(sample, 1, "null", 0)+fmt.Sprintf(sample, 2, "1", 5000)), open)
	exit := Run(ctx, env, []string{"watch", "alerts", "--replay", "-", "--burst", "1kB/1s", "--once", "-o", "ndjson"})
	if exit != 10 || strings.Count(stdout.String(), "\n") != 1 || !strings.Contains(stderr.String(), "note: bursts that aren't over: 1\n") {
		t.Errorf("exit %d, stdout %q, stderr %q", exit, stdout.String(), stderr.String())
	}
}
