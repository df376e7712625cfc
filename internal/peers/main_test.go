package peers

import (
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"bpfnet/internal/testkit"
)

// contacts has the test binary contact others, as a process that can be put into a
// cgroup: words such as tcp/10.77.0.1:80.
const contacts = "BPFNET_TEST_CONTACTS"

func TestMain(m *testing.M) {
	if words := strings.Fields(os.Getenv(contacts)); len(words) > 0 {
		os.Exit(contact(words))
	}
	os.Exit(testkit.Run(m))
}

// contact connects by TCP, or sends a datagram and waits for another one. It prints
// whom it reached.
func contact(words []string) int {
	for _, word := range words {
		network, address, _ := strings.Cut(word, "/")
		conn, err := net.DialTimeout(network, address, 300*time.Millisecond)
		if err != nil {
			continue
		}
		if network == "udp" {
			_ = conn.SetDeadline(time.Now().Add(300 * time.Millisecond))
			_, _ = conn.Write([]byte("hello"))
			_, err = conn.Read(make([]byte, 16))
		}
		if err == nil {
			fmt.Println(word)
		}
		_ = conn.Close()
	}
	return 0
}
