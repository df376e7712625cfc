package sockets

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// inodeCookie is the bit that the cookies of sockets have here to which the kernel gives
// none: the rest is their inode.
const inodeCookie = 1 << 63

// listed are the files of /proc that list the sockets of a protocol: of ping's sock_diag
// knows nothing, and of raw ones not that of every kernel.
var listed = map[uint8]string{unix.IPPROTO_ICMP: "icmp", unix.IPPROTO_RAW: "raw"}

// read calls fn with the sockets in a file of /proc, which has IPv6's beside it.
func read(file string, protocol uint8, fn func(Socket)) error {
	for name, family := range map[string]uint8{file: unix.AF_INET, file + "6": unix.AF_INET6} {
		text, err := os.ReadFile("/proc/thread-self/net/" + name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("list sockets: %w", err)
		}
		for line := range strings.Lines(string(text)) {
			if s, ok := parseLine(line); ok {
				s.Protocol, s.Family = protocol, family
				fn(s)
			}
		}
	}
	return nil
}

// parseLine reads a line of /proc/net/icmp: number, ends, state, queues, timer,
// retransmits, user, timeout, inode. It is false for the header.
func parseLine(line string) (s Socket, ok bool) {
	fields := strings.Fields(line)
	if len(fields) < 10 || !strings.HasSuffix(fields[0], ":") {
		return s, false
	}
	state, err := strconv.ParseUint(fields[3], 16, 8)
	uid, err2 := strconv.ParseUint(fields[7], 10, 32)
	inode, err3 := strconv.ParseUint(fields[9], 10, 32)
	local, ok1 := parseEnd(fields[1])
	remote, ok2 := parseEnd(fields[2])
	s = Socket{
		State: uint8(state), Local: local, Remote: remote, Cookie: inodeCookie | inode, Inode: uint32(inode), UID: uint32(uid),
	}
	return s, errors.Join(err, err2, err3) == nil && ok1 && ok2
}

// parseEnd reads "0100007F:0035": the address is words in the machine's order.
func parseEnd(text string) (end netip.AddrPort, ok bool) {
	address, port, _ := strings.Cut(text, ":")
	bytes, err := hex.DecodeString(address)
	number, err2 := strconv.ParseUint(port, 16, 16)
	for at := 0; at+4 <= len(bytes); at += 4 {
		binary.NativeEndian.PutUint32(bytes[at:], binary.BigEndian.Uint32(bytes[at:]))
	}
	a, ok := netip.AddrFromSlice(bytes)
	return netip.AddrPortFrom(a.Unmap(), uint16(number)), ok && err == nil && err2 == nil
}
