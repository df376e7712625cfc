package drops

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf/btf"

	"bpfnet/internal/probe"
)

// reasonNames reads how the running kernel calls its reasons, "no_socket". There are
// none before Linux 5.17. ErrUnsupported if the kernel has no types.
func reasonNames() (map[uint32]string, error) {
	kernel, err := probe.KernelTypes()
	if err != nil {
		return nil, err
	}
	var reasons *btf.Enum
	err = kernel.TypeByName("skb_drop_reason", &reasons)
	if errors.Is(err, btf.ErrNotFound) {
		return map[uint32]string{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the reasons of the kernel: %w", err)
	}
	names := make(map[uint32]string, len(reasons.Values))
	for _, v := range reasons.Values {
		name := strings.TrimPrefix(strings.TrimPrefix(v.Name, "SKB_"), "DROP_REASON_")
		names[uint32(v.Value)] = strings.ToLower(name)
	}
	return names, nil
}

// symbol is a function of the kernel.
type symbol struct {
	address uint64
	name    string
}

// locate names addresses in the kernel's code, "udp_queue_rcv_one_skb+0x2ba". Those
// that it doesn't tell, or not to this user, are left out.
func locate(addresses []uint64) (map[uint64]string, error) {
	file, err := os.Open("/proc/kallsyms")
	if err != nil {
		return nil, fmt.Errorf("read the kernel's symbols: %w", err)
	}
	defer file.Close()
	return locateIn(file, addresses)
}

func locateIn(symbols io.Reader, addresses []uint64) (map[uint64]string, error) {
	var functions []symbol
	lines := bufio.NewScanner(symbols)
	for lines.Scan() {
		if s, ok := parseSymbol(lines.Text()); ok {
			functions = append(functions, s)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read the kernel's symbols: %w", err)
	}
	slices.SortStableFunc(functions, func(a, b symbol) int { return cmp.Compare(a.address, b.address) })
	found := map[uint64]string{}
	for _, address := range addresses {
		after, _ := slices.BinarySearchFunc(functions, address, func(s symbol, address uint64) int {
			if s.address <= address {
				return -1
			}
			return 1
		})
		if after > 0 {
			s := functions[after-1]
			found[address] = fmt.Sprintf("%s+%#x", s.name, address-s.address)
		}
	}
	return found, nil
}

// parseSymbol reads "ffffffff81000000 T _stext", with a tab and the module behind; false
// for what isn't code, or hidden from this user.
func parseSymbol(line string) (s symbol, ok bool) {
	address, rest, _ := strings.Cut(line, " ")
	kind, name, _ := strings.Cut(rest, " ")
	name, _, _ = strings.Cut(name, "\t")
	if !strings.ContainsAny(kind, "tTwW") {
		return s, false
	}
	at, err := strconv.ParseUint(address, 16, 64)
	return symbol{at, strings.Clone(name)}, err == nil && at != 0
}
