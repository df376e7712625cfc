# "make help" lists the targets. Everything but "build", "install" and
# "completions" first installs the Debian packages that it needs and that are
# missing; scripts/deps says which, and why.

PREFIX  ?= /usr/local
DESTDIR ?=
GO      ?= go

# How long each fuzz target runs, and how often each benchmark.
FUZZTIME  ?= 10s
BENCHTIME ?= 1s
# Further arguments of "go test".
TESTFLAGS ?=

# The version is what Go reads from git, so a repository that git refuses to
# read (it belongs to another user) must not stop the build.
VCS := $(shell git rev-parse HEAD >/dev/null 2>&1 && echo auto || echo false)
# Without its generator of manual pages urfave/cli starts faster.
export GOFLAGS += -buildvcs=$(VCS) -tags=urfave_cli_no_docs

.DEFAULT_GOAL := build
.PHONY: help build test demo bench fuzz generate lint completions install deps

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

build: ## build ./bpfnet; needs Go alone
	CGO_ENABLED=0 $(GO) build -trimpath -o bpfnet .

test: ## run all tests, with the race detector; as root, or those on the kernel are skipped
	@scripts/deps test
	@[ "$$(id -u)" = 0 ] || echo "test: not root, so what needs the kernel is skipped: sudo env PATH=\"\$$PATH\" make test"
	$(GO) test -race $(TESTFLAGS) ./...

demo: build ## count and filter the traffic of two "Pods" on this machine, then clean up
	@scripts/deps demo
	@test/demo.sh ./bpfnet

bench: ## measure programs per packet, and commands on maps beside bpftool; as root
	@scripts/deps bench
	$(GO) test -run '^$$' -bench . -benchtime $(BENCHTIME) ./bench

fuzz: ## run every fuzz target for FUZZTIME
	@scripts/deps
	@scripts/fuzz $(FUZZTIME)

generate: ## compile the BPF programs and make everything else that is generated
	@scripts/deps generate
	$(GO) generate ./...
	internal/datapath/testdata/generate.sh

lint: ## check formatting, vet, staticcheck, shell scripts, licences
	@scripts/deps lint
	@scripts/lint

completions: ## make the completion scripts from the command tree
	$(GO) generate ./completions

# What is built already is installed as it is: root may have no Go.
bpfnet:
	$(MAKE) build

install: bpfnet ## install bpfnet and its completions below PREFIX
	install -Dm755 bpfnet $(DESTDIR)$(PREFIX)/bin/bpfnet
	install -Dm644 completions/bpfnet.bash $(DESTDIR)$(PREFIX)/share/bash-completion/completions/bpfnet
	install -Dm644 completions/bpfnet.zsh $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_bpfnet
	install -Dm644 completions/bpfnet.fish $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/bpfnet.fish

deps: ## install what any target needs
	@scripts/deps test demo generate lint
