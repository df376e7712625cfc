package engine

import (
	"context"
	"io"
	"net"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/grpclog"
)

// What goes wrong is a note, not a line on standard error.
func init() { grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, io.Discard)) }

// newClient speaks gRPC over a connection, which isn't left to grpc to make: errors of
// the socket would be texts.
func newClient(conn net.Conn) (*grpc.ClientConn, error) {
	var once sync.Once
	handOut := func(context.Context, string) (first net.Conn, err error) {
		err = net.ErrClosed
		once.Do(func() { first, err = conn, nil })
		return first, err
	}
	return grpc.NewClient("passthrough:localhost", grpc.WithContextDialer(handOut),
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(mostBytes)))
}
