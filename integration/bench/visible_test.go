//go:build linux

package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"
	"golang.org/x/sys/unix"
)

// visibility tells when transactions became visible to others. The time in the commit record would not do:
// PostgreSQL takes it before it waits for the disk. So a connection of its own asks every millisecond up to which
// transaction all have ended; what the answer is late by is added to a latency, never taken away.
type visibility struct {
	socket *os.File
	ending atomic.Bool
	done   chan error

	// Of every answer: when it was there, and the oldest transaction that had not ended.
	at     []time.Time
	oldest []int64
}

// look is the pause between two questions.
const look = time.Millisecond

// watchCommits begins to ask. Its CPU time is not counted as long as its connection is open, which ends with t.
func watchCommits(t *testing.T, s *Stage) *visibility {
	t.Helper()
	db, err := pgx.Connect(t.Context(), s.URL)
	must(t, err)
	var backend int
	must(t, db.QueryRow(t.Context(), "select pg_backend_pid()").Scan(&backend))
	s.uncounted = append(s.uncounted, backend)
	const statement = "oldest"
	_, err = db.Prepare(t.Context(), statement, "select txid_snapshot_xmin(txid_current_snapshot())")
	must(t, err)

	// A thousand questions a second through driver and network poller would take a good part of a core. These are
	// the same bytes every time.
	var question []byte
	for _, message := range []pgproto3.FrontendMessage{
		&pgproto3.Bind{PreparedStatement: statement, ResultFormatCodes: []int16{pgx.BinaryFormatCode}}, &pgproto3.Execute{}, &pgproto3.Sync{},
	} {
		question, err = message.Encode(question)
		must(t, err)
	}
	hijacked, err := db.PgConn().Hijack()
	must(t, err)
	t.Cleanup(func() { _ = hijacked.Conn.Close() })
	v := &visibility{done: make(chan error, 1)}
	v.socket, err = hijacked.Conn.(*net.TCPConn).File()
	must(t, err)
	go func() { v.done <- v.ask(question) }()
	return v
}

func (v *visibility) ask(question []byte) error {
	defer func() { _ = v.socket.Close() }()
	descriptor := int(v.socket.Fd()) // blocking from now on
	const patience = 30              // seconds
	if err := unix.SetsockoptTimeval(descriptor, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: patience}); err != nil {
		return err
	}
	answer := make([]byte, 512)
	for !v.ending.Load() {
		if _, err := unix.Write(descriptor, question); err != nil {
			return err
		}
		n := 0
		for n < 6 || answer[n-6] != 'Z' { // ReadyForQuery has six bytes
			more, err := unix.Read(descriptor, answer[n:])
			switch {
			case errors.Is(err, unix.EINTR):
				continue
			case err != nil:
				return err
			case more == 0:
				return fmt.Errorf("no whole answer: %q", answer[:n])
			}
			n += more
		}
		oldest, err := oldestOf(answer[:n])
		if err != nil {
			return err
		}
		v.at = append(v.at, time.Now())
		v.oldest = append(v.oldest, oldest)
		time.Sleep(look)
	}
	return nil
}

// oldestOf reads the one value of an answer: BindComplete, then DataRow with one column of eight bytes.
func oldestOf(answer []byte) (int64, error) {
	const row = "2\x00\x00\x00\x04D\x00\x00\x00\x12\x00\x01\x00\x00\x00\x08"
	if len(answer) < len(row)+8 || string(answer[:len(row)]) != row {
		return 0, fmt.Errorf("unexpected answer: %q", answer)
	}
	return int64(binary.BigEndian.Uint64(answer[len(row):])), nil
}

// end stops asking.
func (v *visibility) end(t *testing.T) {
	t.Helper()
	v.ending.Store(true)
	must(t, <-v.done)
}

// of is when a transaction was first seen to have ended; false if it never was.
func (v *visibility) of(transaction int64) (time.Time, bool) {
	i, _ := slices.BinarySearch(v.oldest, transaction+1)
	if i == len(v.at) {
		return time.Time{}, false
	}
	return v.at[i], true
}

func TestVisibility(t *testing.T) {
	base := time.Now()
	v := &visibility{oldest: []int64{5, 5, 7, 9}}
	for i := range v.oldest {
		v.at = append(v.at, base.Add(time.Duration(i)*time.Second))
	}
	for transaction, want := range map[int64]int{4: 0, 5: 2, 6: 2, 7: 3, 8: 3} {
		if got, seen := v.of(transaction); !seen || got.Sub(base) != time.Duration(want)*time.Second {
			t.Errorf("transaction %d after %v, want %d s", transaction, got.Sub(base), want)
		}
	}
	if at, seen := v.of(9); seen {
		t.Errorf("a transaction that has not ended was seen at %v", at)
	}
	for _, bad := range []string{"", "E", "2\x00\x00\x00\x04D\x00\x00\x00\x12\x00\x01\x00\x00\x00\x08short"} {
		if _, err := oldestOf([]byte(bad)); err == nil {
			t.Errorf("%q is an answer", bad)
		}
	}
}

// TestWatchCommits: what another connection commits is seen after it was done and before the next question.
func TestWatchCommits(t *testing.T) {
	server := sharedServer(t)
	s := newStage(t, server, "", Work{})
	_, err := s.db.Exec(t.Context(), "create table seen (i int)")
	must(t, err)
	v := watchCommits(t, s)
	begun := time.Now()
	var transaction int64
	must(t, s.db.QueryRow(t.Context(), "insert into seen values (1) returning xmin::text::int8").Scan(&transaction))
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(look) {
		var oldest int64
		must(t, s.db.QueryRow(context.WithoutCancel(t.Context()), "select txid_snapshot_xmin(txid_current_snapshot())").Scan(&oldest))
		if oldest > transaction {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the transaction does not end")
		}
	}
	time.Sleep(50 * look)
	v.end(t)
	if at, seen := v.of(transaction); !seen || at.Before(begun) {
		t.Errorf("seen %v, at %v after the statement", seen, at.Sub(begun))
	}
}
