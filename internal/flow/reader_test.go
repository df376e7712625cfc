package flow

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"testing"

	"bpfnet/internal/datapath"
	"bpfnet/internal/testkit"
)


func TestQuick(t *testing.T) {
	e, err := datapath.Open(datapath.Options{Root: testkit.Root(t)})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	r, notes, err := Start(context.Background(), e, Filter{}, "")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	t.Log(notes)
	done := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			done <- err
			return
		}
		n, err := io.Copy(io.Discard, c)
		if n != 100000 {
			err = fmt.Errorf("%d %v", n, err)
		}
		c.Write(make([]byte, 777))
		c.Close()
		done <- err
	}()
	c, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c.Write(make([]byte, 100000))
	c.(*net.TCPConn).CloseWrite()
	n, _ := io.Copy(io.Discard, c)
	t.Log(n)
	s, err := r.Sample(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	dump(t, s)
	c.Close()
	t.Log(<-done)
	u, _ := net.Dial("udp4", "127.0.0.1:9999")
	u.Write(make([]byte, 55))
	u.Close()
	if s, err = r.Sample(context.Background()); err != nil {
		t.Fatal(err)
	}
	dump(t, s)
}

func dump(t *testing.T, s Sample) {
	t.Logf("%+v %+v", s.Backend, s.Loss)
	for _, row := range s.Rows {
		if row.PID == uint32(os.Getpid()) || row.PID == 0 {
			t.Logf("%+v %+v", row, row.TCP)
			if row.TCP != nil {
				t.Log(*row.TCP.Transmitted, *row.TCP.Received)
			}
		}
	}
}
