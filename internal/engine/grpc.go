package engine

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

// The few calls are made and read here, without grpc-go and generated code: with
// these bpfnet is half as large again, and each of its commands starts later.

// errUnimplemented is the answer of a server that doesn't have a service.
var errUnimplemented = errors.New("it answers neither CRI v1 nor calls of containerd")

// grpcUnimplemented is the status for that.
const grpcUnimplemented = 12

// caller makes gRPC calls.
type caller struct{ *client }

func newCaller(c *client) caller {
	c.Protocols = new(http.Protocols)
	c.Protocols.SetUnencryptedHTTP2(true)
	return caller{c}
}

// call calls a method, "package.Service/Method", without arguments. namespace is one
// of containerd's, or "".
func (c caller) call(ctx context.Context, method, namespace string) (fields, error) {
	empty := bytes.NewReader(make([]byte, frameHeader))
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://localhost/"+method, empty)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", "application/grpc")
	request.Header.Set("TE", "trailers")
	if namespace != "" {
		request.Header.Set("containerd-namespace", namespace)
	}
	response, err := c.RoundTrip(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := readAll(response.Body)
	if err != nil {
		return nil, err
	}
	if err := statusOf(response); err != nil {
		return nil, err
	}
	return unframe(body)
}

// list calls a method without arguments whose answer is a list, in its first field.
func (c caller) list(ctx context.Context, method, namespace string) ([]fields, error) {
	message, err := c.call(ctx, method, namespace)
	if err != nil {
		return nil, err
	}
	return message.messages(1)
}

// statusOf is the error of a response whose body has been read. An error without a
// message has its status in the header.
func statusOf(response *http.Response) error {
	text, message := response.Trailer.Get("Grpc-Status"), response.Trailer.Get("Grpc-Message")
	if text == "" {
		text, message = response.Header.Get("Grpc-Status"), response.Header.Get("Grpc-Message")
	}
	code, err := strconv.ParseUint(text, 10, 32)
	switch {
	case response.StatusCode != http.StatusOK || err != nil:
		return fmt.Errorf("its answer isn't gRPC: %s", response.Status)
	case code == grpcUnimplemented:
		return errUnimplemented
	case code != 0:
		return fmt.Errorf("status %d: %s", code, message)
	}
	return nil
}

var errNonsense = errors.New("its answer makes no sense")

// frameHeader is the length of what stands in front of a message: whether it is
// compressed, and its length.
const frameHeader = 5

// unframe reads the only message of a body.
func unframe(body []byte) (fields, error) {
	if len(body) < frameHeader || body[0] != 0 || uint64(binary.BigEndian.Uint32(body[1:])) != uint64(len(body)-frameHeader) {
		return nil, errNonsense
	}
	return parse(body[frameHeader:])
}

// fields are those of a message by their number: of one that is repeated all values,
// in order.
type fields map[uint64][]field

// field is the value of a field of one of the two kinds that are read.
type field struct {
	number uint64
	bytes  []byte
}

// The kinds of fields on the wire.
const (
	kindVarint  = 0
	kindFixed64 = 1
	kindBytes   = 2
	kindFixed32 = 5
)

// parse reads a message of protobuf.
func parse(message []byte) (fields, error) {
	found := fields{}
	for len(message) > 0 {
		tag, rest, ok := varint(message)
		if !ok {
			return nil, errNonsense
		}
		var f field
		if f, message, ok = value(tag%8, rest); !ok {
			return nil, errNonsense
		}
		found[tag/8] = append(found[tag/8], f)
	}
	return found, nil
}

// value takes a value of a kind off the beginning of a message.
func value(kind uint64, message []byte) (f field, rest []byte, ok bool) {
	switch kind {
	case kindVarint:
		f.number, rest, ok = varint(message)
	case kindFixed64:
		_, rest, ok = cut(message, 8)
	case kindFixed32:
		_, rest, ok = cut(message, 4)
	case kindBytes:
		var size uint64
		if size, rest, ok = varint(message); ok {
			f.bytes, rest, ok = cut(rest, size)
		}
	}
	return f, rest, ok
}

func varint(message []byte) (n uint64, rest []byte, ok bool) {
	n, size := binary.Uvarint(message)
	return n, message[max(size, 0):], size > 0
}

func cut(message []byte, size uint64) (head, rest []byte, ok bool) {
	if size > uint64(len(message)) {
		return nil, nil, false
	}
	return message[:size], message[size:], true
}

// messages reads a field of messages that is repeated.
func (f fields) messages(number uint64) ([]fields, error) {
	list := make([]fields, len(f[number]))
	for i, value := range f[number] {
		var err error
		if list[i], err = parse(value.bytes); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// message reads a field that is a message; the empty one where it isn't there.
func (f fields) message(number uint64) (fields, error) {
	return parse(f.last(number).bytes)
}

// text reads a field that is a text. What isn't UTF-8 in it is replaced.
func (f fields) text(number uint64) string {
	return strings.ToValidUTF8(string(f.last(number).bytes), "\ufffd")
}

func (f fields) number(number uint64) uint64 { return f.last(number).number }

func (f fields) last(number uint64) field {
	if list := f[number]; len(list) > 0 {
		return list[len(list)-1]
	}
	return field{}
}

// texts reads a map of texts.
func (f fields) texts(number uint64) (map[string]string, error) {
	found := map[string]string{}
	pairs, err := f.messages(number)
	for _, pair := range pairs {
		found[pair.text(1)] = pair.text(2)
	}
	return found, err
}
