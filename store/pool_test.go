package store

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// refusing is the port of a server without TLS that lets nobody in.
func refusing(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refusal, err := (&pgproto3.ErrorResponse{Severity: "FATAL", Code: "28P01", Message: "password authentication failed"}).Encode(nil)
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			backend := pgproto3.NewBackend(nc, nc)
			switch message, _ := backend.ReceiveStartupMessage(); message.(type) {
			case *pgproto3.SSLRequest:
				_, _ = io.WriteString(nc, "N")
			case *pgproto3.StartupMessage:
				_, _ = nc.Write(refusal)
			}
			_ = nc.Close()
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		serving.Wait()
	})
	return l.Addr().(*net.TCPAddr).Port
}

// TestPlain: the driver tries an address with TLS and without, and tells of both attempts.
func TestPlain(t *testing.T) {
	t.Parallel()
	port := refusing(t)
	for _, test := range []struct {
		name, dsn string
		want      string
		code      string // of the server
	}{
		{
			"wrong password", fmt.Sprintf("host=127.0.0.1 port=%d user=u database=d sslmode=prefer", port),
			fmt.Sprintf("ask: failed to connect to `user=u database=d`: 127.0.0.1:%d (127.0.0.1): server error: FATAL: password authentication failed (SQLSTATE 28P01)", port), "28P01",
		},
		{
			"nobody listens", "host=127.0.0.1 port=1 user=u database=d sslmode=prefer",
			"ask: failed to connect to `user=u database=d`: 127.0.0.1:1 (127.0.0.1): dial error: dial tcp 127.0.0.1:1: connect: connection refused", "",
		},
		{
			"one of two hosts answers", fmt.Sprintf("host=127.0.0.1,127.0.0.1 port=1,%d user=u database=d sslmode=prefer", port),
			"ask: failed to connect to `user=u database=d`: 127.0.0.1:1 (127.0.0.1): dial error: dial tcp 127.0.0.1:1: connect: connection refused; " +
				fmt.Sprintf("127.0.0.1:%d (127.0.0.1): server error: FATAL: password authentication failed (SQLSTATE 28P01)", port), "28P01",
		},
		{
			"TLS alone", fmt.Sprintf("host=127.0.0.1 port=%d user=u database=d sslmode=require", port),
			fmt.Sprintf("ask: failed to connect to `user=u database=d`: 127.0.0.1:%d (127.0.0.1): tls error: server refused TLS connection", port), "",
		},
	} {
		conn, err := pgx.Connect(t.Context(), test.dsn)
		if err == nil {
			_ = conn.Close(t.Context())
			t.Fatalf("%s: connected", test.name)
		}
		err = Plain(fmt.Errorf("ask: %w", err))
		if err.Error() != test.want {
			t.Errorf("%s:\n%v, want\n%s", test.name, err, test.want)
		}
		pgErr, connectErr := (*pgconn.PgError)(nil), (*pgconn.ConnectError)(nil)
		if !errors.As(err, &connectErr) || errors.As(err, &pgErr) != (test.code != "") || test.code != "" && pgErr.Code != test.code {
			t.Errorf("%s: the error has lost what it was", test.name)
		}
	}
	other := errors.New("other")
	if got := Plain(other); !errors.Is(got, other) || got.Error() != "other" || Plain(nil) != nil {
		t.Errorf("another error becomes %v", got)
	}
	if text := Plain(fmt.Errorf("a: %w", other)).Error(); !strings.HasPrefix(text, "a: ") {
		t.Error(text)
	}
}
