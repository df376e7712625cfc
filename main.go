// Command bpfnet watches and controls the network traffic of containers and
// Pods with eBPF programs and maps that stay pinned in bpffs.
package main

import (
	"os"

	"bpfnet/commands"
	_ "bpfnet/internal/fewfiles"
)

func main() { os.Exit(commands.Main()) }
