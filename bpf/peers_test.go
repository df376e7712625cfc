package bpf_test

import "testing"

func TestPeersLoad(t *testing.T) { load(t, "peers", nil) }
