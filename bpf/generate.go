package bpf

// The objects are committed, so building needs Go alone. Generating needs
// clang-19, llvm-strip-19 and the headers of linux-libc-dev and libbpf-dev; the
// output doesn't depend on the directory it is made in.

//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -type counter -type interface_counters xdpCounter xdp_counter.bpf.c -- -O2 -Wall -Werror -mcpu=v2 -Iheaders -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -type pod_key -type cgroup_pod_key -type pod_counters -type prefix -type traffic_row podTraffic pod_traffic.bpf.c -- -O2 -Wall -Werror -mcpu=v2 -Iheaders -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -type counter -type policy_page -type policy_header -type policy_rule -type port_row -type port_protocol -type port_side portFilter port_filter.bpf.c -- -O2 -Wall -Werror -mcpu=v2 -Iheaders -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -type block_key4 -type block_key6 -type block_entry -type block_config -type block_length6 -type block_list -type block_note -type domain_key -type domain_status -type block_domain -type answer_key -type answer_source -type block_answer -type hit_key -type hit_counters -type block_row -type block_event -type episode blocklist blocklist.bpf.c -- -O2 -Wall -Werror -mcpu=v2 -Iheaders -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -type dns_event -type dns_row dns dns.bpf.c -- -O2 -Wall -Werror -mcpu=v2 -Iheaders -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -type peer_key -type peer_entry -type endpoint_key -type endpoint_counters -type peer_row -type peer_hook peers peers.bpf.c -- -O2 -Wall -Werror -mcpu=v2 -Iheaders -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -type flow_use -type flow_ending -type flow_flag -type flow_event -type flow_record -type flow_sums flows flows.bpf.c -- -O2 -Wall -Werror -mcpu=v3 -Iheaders -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu
