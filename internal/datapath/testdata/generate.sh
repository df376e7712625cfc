#!/bin/sh
# Compiles the objects that the tests load as a user's own.
# shellcheck disable=SC2086 # the flags are words
set -eu
cd "$(dirname "$0")"
flags="-O2 -Wall -Werror -target bpfel -mcpu=v2 -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu"
clang-19 $flags -c legacy.bpf.c -o legacy.o
for name in several rejected limits events typed tracers probes; do
	clang-19 $flags -g -fdebug-compilation-dir=. -c $name.bpf.c -o $name.o
	llvm-strip-19 -g $name.o
done
