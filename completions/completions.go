// Package completions holds the completion scripts of the shells. They ask
// "bpfnet __complete" for every candidate, so that what they offer is always
// what the installed bpfnet knows and what is loaded at that moment.
//
// The scripts are made from the templates, with the words that package commands
// uses for its side of the conversation:
//
//go:generate go test ../commands -run TestCompletionScripts -update
package completions

import (
	"embed"
	"fmt"
)

//go:embed bpfnet.bash bpfnet.zsh bpfnet.fish
var scripts embed.FS

// Shells lists the shells that there is a script for.
func Shells() []string { return []string{"bash", "zsh", "fish"} }

// Script returns the completion script of one of Shells.
func Script(shell string) string {
	text, err := scripts.ReadFile("bpfnet." + shell)
	if err != nil {
		panic(fmt.Sprintf("no completion script for %s", shell)) // Shells and the embedded files differ
	}
	return string(text)
}

// Usage says how to make the shell use its script.
func Usage(shell string) string {
	switch shell {
	case "bash":
		return "source <(bpfnet completion bash)   or put it into /etc/bash_completion.d/bpfnet"
	case "zsh":
		return "put it into a directory of $fpath as _bpfnet"
	}
	return "put it into ~/.config/fish/completions/bpfnet.fish"
}
