package dns

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	wire "github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"bpfnet/internal/netns"
)

// Bytes of UDP: what is asked for, which arrives unfragmented (DNS flag day
// 2020), and what is read if a server sends more.
const (
	askedSize = 1232
	takenSize = 4096
)

var errTimeout = errors.New("time is up")

// ask asks one server for the records of a name: by UDP, and by TCP when the
// answer doesn't fit. What is returned answers this question.
func (r *Resolver) ask(ctx context.Context, server netip.AddrPort, name string, qtype uint16) (*wire.Msg, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, r.config.timeout, errTimeout)
	defer cancel()
	extended := new(wire.Msg).SetQuestion(name, qtype).SetEdns0(askedSize, false)
	reply, err := r.exchange(ctx, "udp", server, extended)
	if err == nil && (reply.Rcode == wire.RcodeFormatError || reply.Rcode == wire.RcodeNotImplemented) {
		reply, err = r.exchange(ctx, "udp", server, new(wire.Msg).SetQuestion(name, qtype)) // RFC 6891, 7
	}
	if err == nil && reply.Truncated {
		reply, err = r.exchange(ctx, "tcp", server, extended)
	}
	return reply, err
}

// exchange sends a question and waits for its answer until the context ends.
func (r *Resolver) exchange(ctx context.Context, network string, server netip.AddrPort, q *wire.Msg) (*wire.Msg, error) {
	conn, err := r.dial(ctx, network, server)
	if err != nil {
		return nil, r.why(ctx, network, server, 0, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	stream := &wire.Conn{Conn: conn, UDPSize: takenSize}
	if err := stream.WriteMsg(q); err != nil {
		return nil, r.why(ctx, network, server, 0, err)
	}
	for others := 0; ; others++ {
		reply, err := stream.ReadMsg()
		switch {
		case (err == nil || reply != nil && reply.Truncated) && answers(reply, q): // cut anywhere
			return reply, nil
		case network == "tcp" && (err == nil || !isIO(err)):
			return nil, fmt.Errorf("%s answers something else by TCP", at(server))
		case err != nil && isIO(err):
			return nil, r.why(ctx, network, server, others, err)
		}
	}
}

// dial makes the socket on a thread in the resolver's network namespace, where
// it stays.
func (r *Resolver) dial(ctx context.Context, network string, server netip.AddrPort) (conn net.Conn, err error) {
	err = netns.Do(r.namespace, func() (err error) {
		conn, err = new(net.Dialer).DialContext(ctx, network, server.String())
		return err
	})
	return conn, err
}

// answers says whether a message is the answer to a question. A server that
// can't read the question may leave it out.
func answers(reply, q *wire.Msg) bool {
	if reply.Id != q.Id || !reply.Response || reply.Opcode != q.Opcode {
		return false
	}
	if len(reply.Question) == 0 {
		return reply.Rcode == wire.RcodeFormatError || reply.Rcode == wire.RcodeNotImplemented ||
			reply.Rcode == wire.RcodeServerFailure || reply.Rcode == wire.RcodeRefused
	}
	got, asked := reply.Question[0], q.Question[0]
	return len(reply.Question) == 1 && got.Qtype == asked.Qtype && got.Qclass == asked.Qclass &&
		strings.EqualFold(got.Name, asked.Name)
}

// isIO tells errors of the connection from those of a message.
func isIO(err error) bool {
	var operation *net.OpError
	return errors.As(err, &operation) || isTimeout(err) || isEOF(err)
}

func isTimeout(err error) bool {
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded)
}

func isEOF(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }

// why says why a server gave no answer.
func (r *Resolver) why(ctx context.Context, network string, server netip.AddrPort, others int, err error) error {
	transport := ""
	if network == "tcp" {
		transport = " by TCP"
	}
	switch {
	case context.Cause(ctx) != nil && !errors.Is(context.Cause(ctx), errTimeout):
		return context.Cause(ctx)
	case isTimeout(err) && others > 0:
		return fmt.Errorf("no answer from %s%s within %s, but %d to another question", at(server), transport, r.config.timeout, others)
	case isTimeout(err):
		return fmt.Errorf("no answer from %s%s within %s", at(server), transport, r.config.timeout)
	case errors.Is(err, unix.ECONNREFUSED):
		return fmt.Errorf("%s refuses the connection%s: %w", at(server), transport, unix.ECONNREFUSED)
	case isEOF(err):
		return fmt.Errorf("%s ends the connection%s without an answer", at(server), transport)
	}
	var operation *net.OpError
	if number := unix.Errno(0); errors.As(err, &operation) && errors.As(err, &number) {
		return fmt.Errorf("ask %s%s: %w", at(server), transport, number)
	}
	return err
}

// at is a server as resolv.conf names it.
func at(server netip.AddrPort) string {
	if server.Port() == 53 {
		return server.Addr().String()
	}
	return server.String()
}
