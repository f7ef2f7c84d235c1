package store

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/mqttpg/bridge/mapping"
)

// fakeServer accepts one connection, and hands it to serve when the client is let in. Cancel requests
// are passed over.
func fakeServer(t *testing.T, serve func(server *pgproto3.Backend, conn net.Conn)) *pgconn.PgConn {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer func() { _ = conn.Close() }()
		server := pgproto3.NewBackend(conn, conn)
		if _, err := server.ReceiveStartupMessage(); err != nil {
			return
		}
		server.Send(&pgproto3.AuthenticationOk{})
		server.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
		if server.Flush() == nil {
			serve(server, conn)
		}
	}()
	conn, err := pgconn.Connect(t.Context(), "postgres://bridge@"+listener.Addr().String()+"/bridge?sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close(context.Background())
		_ = listener.Close()
		<-conn.CleanupDone()
		<-ended
	})
	return conn
}

// copyOf is a COPY of some megabytes.
func copyOf(megabytes int) *statement {
	rows := make([]rowRef, 0, megabytes)
	for range megabytes {
		rows = append(rows, rowRef{row: &mapping.Row{Fields: make([]byte, 1<<20)}})
	}
	return &statement{sql: "copy", copied: rows, columns: 1}
}

// TestServerThatDoesNotRead: the end of the context ends the sending of a batch, too.
func TestServerThatDoesNotRead(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	conn := fakeServer(t, func(*pgproto3.Backend, net.Conn) { <-release })
	defer close(release)
	large := copyOf(64)
	ctx, cancel := context.WithTimeoutCause(t.Context(), 100*time.Millisecond, errors.New("enough"))
	defer cancel()
	failed, err := run(ctx, conn, []*statement{large})
	if failed != 1 || err == nil || !strings.Contains(err.Error(), "enough") {
		t.Errorf("failed %d, %v, want the connection's failure and the cause of the context", failed, err)
	}
	if !conn.IsClosed() {
		t.Error("the connection is still open")
	}
}

// TestServerThatWantsToBeRead: a server that says more than the sockets hold before it reads on does not
// stop the bridge, which sends at the same time.
func TestServerThatWantsToBeRead(t *testing.T) {
	t.Parallel()
	conn := fakeServer(t, func(server *pgproto3.Backend, _ net.Conn) {
		notice := &pgproto3.NoticeResponse{Severity: "NOTICE", Message: strings.Repeat("x", 1<<20)}
		for range 32 {
			server.Send(notice)
		}
		if server.Flush() != nil {
			return
		}
		for {
			m, err := server.Receive()
			if err != nil {
				return
			}
			switch m.(type) {
			case *pgproto3.CopyDone:
				server.Send(&pgproto3.CommandComplete{CommandTag: []byte("COPY 32")})
			case *pgproto3.Sync:
				server.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
				_ = server.Flush()
			}
		}
	})
	s := copyOf(32)
	if failed, err := run(t.Context(), conn, []*statement{s}); err != nil || s.affected != 32 {
		t.Errorf("failed %d, %v, %d rows, want 32", failed, err, s.affected)
	}
	if conn.IsClosed() || conn.IsBusy() {
		t.Error("the connection cannot be used again")
	}
}

// TestServerThatGoes in the middle of a COPY: with last words and without.
func TestServerThatGoes(t *testing.T) {
	t.Parallel()
	for _, words := range []string{"", "terminating connection due to administrator command"} {
		t.Run(words, func(t *testing.T) {
			t.Parallel()
			conn := fakeServer(t, func(server *pgproto3.Backend, conn net.Conn) {
				_, _ = io.CopyN(io.Discard, conn, 1<<20)
				if words != "" {
					server.Send(&pgproto3.ErrorResponse{Severity: "FATAL", Code: "57P01", Message: words})
					_ = server.Flush()
					_, _ = io.CopyN(io.Discard, conn, 1<<20)
				}
			})
			failed, err := run(t.Context(), conn, []*statement{{sql: "first"}, copyOf(64)})
			pgErr := (*pgconn.PgError)(nil)
			if err == nil || errors.As(err, &pgErr) != (words != "") {
				t.Errorf("failed %d, %v, want the end of the connection", failed, err)
			}
			if !conn.IsClosed() {
				t.Error("the connection is still open")
			}
		})
	}
}

// TestRefusedCopy: the server passes over the rows, and says which statement failed. The connection is good.
func TestRefusedCopy(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	big := copyOf(16)
	big.sql = "copy missing from stdin (format binary)"
	failed, err := run(t.Context(), conn.Conn().PgConn(), []*statement{{sql: "select 1"}, big, {sql: "select 2"}})
	pgErr := (*pgconn.PgError)(nil)
	if failed != 1 || !errors.As(err, &pgErr) || pgErr.Code != "42P01" {
		t.Errorf("failed %d, %v, want 42P01 of statement 1", failed, err)
	}
	one := &statement{sql: "select 1::int4", read: func(v [][]byte) error {
		if len(v) != 1 || len(v[0]) != 4 || v[0][3] != 1 {
			t.Errorf("%v", v)
		}
		return nil
	}}
	if _, err := run(t.Context(), conn.Conn().PgConn(), []*statement{one, {sql: ""}}); err != nil || one.affected != 1 {
		t.Errorf("%v, %d rows", err, one.affected)
	}
}
