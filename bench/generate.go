// Package bench measures what packets, TCP connections and commands cost, beside
// empty programs, connections without programs, and bpftool.
package bench

//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -no-global-types yardsticks yardsticks.bpf.c -- -O2 -Wall -Werror -mcpu=v2 -I../bpf/headers -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -no-global-types addresses addresses.bpf.c -- -O2 -Wall -Werror -mcpu=v2 -I../bpf/headers -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -no-global-types listed listed.bpf.c -- -O2 -Wall -Werror -mcpu=v2 -I../bpf/headers -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -no-global-types contacts contacts.bpf.c -- -O2 -Wall -Werror -mcpu=v2 -I../bpf/headers -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -no-global-types tuples tuples.bpf.c -- -O2 -Wall -Werror -mcpu=v3 -I../bpf/headers -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu
