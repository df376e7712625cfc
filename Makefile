# "make help" lists the targets. Everything but "build", "install" and
# "completions" first installs the Debian packages that it needs and that are
# missing; scripts/deps says which, and why.

PREFIX  ?= /usr/local
DESTDIR ?=
GO      ?= go

# How long each fuzz target runs, and each benchmark of benchstat.
FUZZTIME  ?= 10s
BENCHTIME ?= 1s
# How long the tests of a package may take, and further arguments of "go test".
TESTTIME  ?= 60m
TESTFLAGS ?=
# What test-kernels runs, and where: the packages, of ./test what matches, and where
# tc falls back, of the tests by command those of tc; an emulated machine takes an
# hour for all kills and the crowd. KERNEL_MORE of the environment has further lines
# for test/vm/several.
KERNELS ?= 5.10 6.1 6.12 6.18 newest
KERNEL_VARIANTS ?= 6.12:lockdown=integrity 6.12:lockdown=confidentiality 6.12:no-btf
KERNEL_PACKAGES ?= ./bpf ./pinned $(addprefix ./internal/,blocklist bpftool bypass counter datapath dns drops endpoint flow follow holders maps metrics peers ports probe sockets traffic)
KERNEL_TESTS ?= Scripts|Matrix|Endpoints|HostSideBypassed|UnreadPrograms|ThreeCapabilities|OwnLinks|MissingCapability|Readme|Articles|Maps$$|LowMemlock|MissingBPFFS|ReadOnlyBPFFS|MapFull|InputCut|ReplacedPins|Targets|AllPods|Peers|Drops
CASES_KERNELS ?= 5.10 6.1
KERNEL_CASES ?= Test(RefusedNetlink|KillAtEveryStep)$$/^((at|de)tach-tc|replace-tc)$$

# The version is what Go reads from git, so a repository that git refuses to
# read (it belongs to another user) must not stop the build.
VCS := $(shell git rev-parse HEAD >/dev/null 2>&1 && echo auto || echo false)
# Without its generator of manual pages urfave/cli starts faster, and without its
# tracing grpc-go.
export GOFLAGS += -buildvcs=$(VCS) -tags=urfave_cli_no_docs,grpcnotrace

.DEFAULT_GOAL := build
.PHONY: help build test test-kernels test-all demo bench benchstat fuzz generate lint completions install deps

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

build: ## build ./bpfnet; needs Go alone
	CGO_ENABLED=0 $(GO) build -trimpath -o bpfnet .

test: SHELL := /bin/bash -o pipefail
test: ## run all tests, with the race detector; as root, or those on the kernel are skipped
	@scripts/deps test
	@[ "$$(id -u)" = 0 ] || echo "test: not root, so what needs the kernel is skipped: sudo env PATH=\"\$$PATH\" make test"
	$(GO) test -json -race -timeout $(TESTTIME) $(TESTFLAGS) ./... | test/vm/report machine "$$(uname -r)"

test-kernels: ## run the tests under KERNELS, Debian's, in QEMU; needs no root
	@scripts/deps kernels
	@{ for kernel in $(KERNELS); do \
		echo "-t 7200 $$kernel ./test -- -test.run 'Test($(KERNEL_TESTS))' -test.timeout 2h"; \
		echo "-t 3600 $$kernel $(KERNEL_PACKAGES) -- -test.short"; \
	done; \
	for kernel in $(filter $(CASES_KERNELS),$(KERNELS)); do \
		echo "-t 7200 $$kernel ./test -- -test.run '$(KERNEL_CASES)' -test.timeout 2h"; \
	done; \
	for kernel in $(KERNEL_VARIANTS); do \
		echo "-t 3600 $$kernel ./test -- -test.run 'Test(Scripts|Matrix|ThreeCapabilities)' -test.timeout 1h"; \
	done; \
	echo "$$KERNEL_MORE"; } | test/vm/several

test-all: export BPFNET_TEST_CROWD = 60s
test-all: export BPFNET_TEST_ALL = 1
test-all: TESTTIME = 4h
test-all: lint test fuzz demo test-kernels ## run every test there is, and all commands under all kernels
	@test/vm/kernels

demo: build ## count and filter the traffic of two "Pods" on this machine, then clean up
	@scripts/deps demo
	@test/demo.sh ./bpfnet

bench: ## measure packets, TCP and commands, compare with what is kept; as root; UPDATE=1 keeps it, CASES=REGEXP chooses
	@scripts/deps bench
	$(GO) test -C bench -count 1 -run '^TestResults$$' -timeout 30m -measure $(if $(UPDATE),-update) $(if $(CASES),-cases '$(CASES)')

benchstat: ## measure for BENCHTIME each, packets, TCP and commands on small maps, in the words of benchstat; as root
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
	@scripts/deps test kernels demo generate lint
