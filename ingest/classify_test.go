package ingest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"testing"
)

func TestClassify(t *testing.T) {
	tests := []struct {
		cause error
		label string
		code  byte
	}{
		{&disconnectError{code: 0x8E}, "taken_over", 0x8E},
		{&disconnectError{code: 0x8B}, "server_disconnect", 0x8B},
		{malformed("x"), "protocol_error", 0x81},
		{errLibrary, "protocol_error", 0},
		{errPingTimeout, "keepalive_timeout", 0},
		{&writeError{os.ErrDeadlineExceeded}, "write", 0},
		{io.EOF, "closed_by_broker", 0},
		{io.ErrUnexpectedEOF, "network", 0},
		{fmt.Errorf("read: %w", syscall.ECONNRESET), "network", 0},
		{errors.New("anything"), "network", 0},
	}
	for _, test := range tests {
		if label, code := classify(test.cause); label != test.label || code != test.code {
			t.Errorf("%v: %s 0x%02X, want %s 0x%02X", test.cause, label, code, test.label, test.code)
		}
	}
}

// What one message costs on its way from the buffer to Deliver.
func BenchmarkReceive(b *testing.B) {
	var s *Session
	s = newIdleRig(b, func(cfg *Config) {
		cfg.Deliver = func(_ context.Context, d *Delivery) { d.Arena.Release(1); s.cfg.Budget.Release(int64(d.Size)) }
	}, "mqtt://test").session
	frame := append([]byte{0, 16}, "devices/17/state"...)
	frame = append(frame, 0, 1, 0)
	frame = append(frame, bytes.Repeat([]byte("x"), 200)...)
	packet := append(fixedHeader(0x32, len(frame)), frame...)
	c := newConn(s, &stream{in: bytes.NewReader(nil), eof: io.EOF})
	c.generation.Store(1)
	c.reader.Reset(&repeat{packet: packet})
	b.ReportAllocs()
	b.SetBytes(int64(len(packet)))
	for b.Loop() {
		if err := c.packet(); err != nil {
			b.Fatal(err)
		}
	}
}

// repeat says the same packet for ever.
type repeat struct {
	packet []byte
	at     int
}

func (r *repeat) Read(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		k := copy(p[n:], r.packet[r.at:])
		n, r.at = n+k, (r.at+k)%len(r.packet)
	}
	return n, nil
}
