package sink

import (
	"context"
	"fmt"
	"net"
	"os"
	"time"

	"bpfnet/internal/alert"
)

// logSocket is where syslog daemons and journald listen.
const logSocket = "/dev/log"

// logPriority is facility daemon and the severity, as RFC 5424 numbers them.
func logPriority(s alert.Severity) int {
	const daemon, critical, warning, info = 3 * 8, 2, 4, 6
	switch s {
	case alert.Critical:
		return daemon + critical
	case alert.Info:
		return daemon + info
	}
	return daemon + warning
}

// syslog sends documents to a syslog daemon of this machine, in its traditional form
// (RFC 3164, as syslog(3) writes it, without the name of the host).
type syslog struct {
	path   string
	conn   net.Conn
	stream bool
	now    func() time.Time
}

func openSyslog(s Spec, o Options) (driver, error) {
	path := s.target
	if path == "" {
		path = logSocket
	}
	return &syslog{path: path, now: o.Now}, nil
}

func (d *syslog) most() int { return 1 }

func (d *syslog) close() {
	if d.conn != nil {
		d.conn.Close()
		d.conn = nil
	}
}

// dial connects to the daemon, which may want datagrams or a stream.
func (d *syslog) dial(ctx context.Context) (err error) {
	var dialer net.Dialer
	for _, network := range []string{"unixgram", "unix"} {
		if d.conn, err = dialer.DialContext(ctx, network, d.path); err == nil {
			d.stream = network == "unix"
			return nil
		}
		d.conn = nil
	}
	return fmt.Errorf("connect: %w", cause(err))
}

func (d *syslog) deliver(ctx context.Context, events []Event) result {
	if d.conn == nil {
		if err := d.dial(ctx); err != nil {
			return result{rest: events, err: err}
		}
	}
	message := fmt.Appendf(nil, "<%d>%s bpfnet[%d]: %s", logPriority(events[0].Alert.Severity), d.now().Local().Format(time.Stamp), os.Getpid(), events[0].Document)
	if d.stream {
		message = append(message, '\n')
	}
	deadline, _ := ctx.Deadline()
	_ = d.conn.SetWriteDeadline(deadline) // a socket has one
	if _, err := d.conn.Write(message); err != nil {
		d.close() // the daemon may listen anew
		return result{rest: events, err: fmt.Errorf("write: %w", cause(err))}
	}
	return result{}
}
