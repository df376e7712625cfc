package peers

import (
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
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

// contact connects by TCP, or sends a datagram and waits for another one, to all at
// once. It prints whom it reached, in order.
func contact(words []string) int {
	reached := make([]bool, len(words))
	var all sync.WaitGroup
	for i, word := range words {
		all.Go(func() { reached[i] = reach(word) })
	}
	all.Wait()
	for i, word := range words {
		if reached[i] {
			fmt.Println(word)
		}
	}
	return 0
}

func reach(word string) bool {
	network, address, _ := strings.Cut(word, "/")
	conn, err := net.DialTimeout(network, address, 3*time.Second)
	if err != nil {
		return false
	}
	defer conn.Close()
	if network == "udp" {
		_ = conn.SetDeadline(time.Now().Add(3 * time.Second))
		_, _ = conn.Write([]byte("hello"))
		_, err = conn.Read(make([]byte, 16))
	}
	return err == nil
}
