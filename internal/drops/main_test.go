package drops

import (
	"fmt"
	"io"
	"net"
	"os"
	"testing"

	"bpfnet/internal/testkit"
)

// receiver has the test binary bind a UDP socket with the smallest buffer to an address,
// as a process that can be put into a namespace and a cgroup, and read nothing.
const receiver = "BPFNET_TEST_RECEIVER"

func TestMain(m *testing.M) {
	if address := os.Getenv(receiver); address != "" {
		os.Exit(receive(address))
	}
	os.Exit(testkit.Run(m))
}

// receive prints a line when it is ready, and ends when its input does.
func receive(address string) int {
	conn, err := net.ListenPacket("udp", address)
	if err == nil {
		err = conn.(*net.UDPConn).SetReadBuffer(1)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer conn.Close()
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin)
	return 0
}
