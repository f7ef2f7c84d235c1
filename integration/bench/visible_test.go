//go:build linux

package bench

import (
	"context"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sys/unix"
)

// visibility tells when transactions became visible to others. The time in the commit record would not do:
// PostgreSQL takes it before it waits for the disk. So a connection of its own asks every millisecond up to which
// transaction all have ended; what the answer is late by is added to a latency, never taken away.
type visibility struct {
	db      *pgx.Conn
	backend int
	stop    context.CancelFunc
	done    chan error

	// Of every answer: when it was there, and the oldest transaction that had not ended.
	at     []time.Time
	oldest []int64
}

// look is the pause between two questions.
const look = time.Millisecond

// watchCommits begins to ask. Its CPU time is not counted, as long as it is not closed.
func watchCommits(t *testing.T, s *Stage) *visibility {
	t.Helper()
	v := &visibility{done: make(chan error, 1)}
	var err error
	v.db, err = pgx.Connect(t.Context(), s.URL)
	must(t, err)
	must(t, v.db.QueryRow(t.Context(), "select pg_backend_pid()").Scan(&v.backend))
	s.uncounted = append(s.uncounted, v.backend)
	var ctx context.Context
	ctx, v.stop = context.WithCancel(t.Context())
	t.Cleanup(func() { _ = v.db.Close(context.WithoutCancel(t.Context())) })
	go func() { v.done <- v.ask(ctx) }()
	return v
}

func (v *visibility) ask(ctx context.Context) error {
	runtime.LockOSThread() // see pace
	defer runtime.UnlockOSThread()
	for ctx.Err() == nil {
		var oldest int64
		// Not with ctx: a question that is cut off would cost the connection.
		err := v.db.QueryRow(context.WithoutCancel(ctx), "select txid_snapshot_xmin(txid_current_snapshot())").Scan(&oldest)
		if err != nil {
			return err
		}
		v.at = append(v.at, time.Now())
		v.oldest = append(v.oldest, oldest)
		rest := unix.NsecToTimespec(int64(look))
		_ = unix.Nanosleep(&rest, nil) // a signal shortens it
	}
	return nil
}

// end stops asking.
func (v *visibility) end(t *testing.T) {
	t.Helper()
	v.stop()
	must(t, <-v.done)
}

// of is when a transaction was first seen to have ended; after the last answer it is the time of that.
func (v *visibility) of(transaction int64) time.Time {
	i, _ := slices.BinarySearch(v.oldest, transaction+1)
	return v.at[min(i, len(v.at)-1)]
}

func TestVisibility(t *testing.T) {
	base := time.Now()
	v := &visibility{oldest: []int64{5, 5, 7, 9}}
	for i := range v.oldest {
		v.at = append(v.at, base.Add(time.Duration(i)*time.Second))
	}
	for transaction, want := range map[int64]int{4: 0, 5: 2, 6: 2, 7: 3, 8: 3} {
		if got := v.of(transaction).Sub(base); got != time.Duration(want)*time.Second {
			t.Errorf("transaction %d after %v, want %d s", transaction, got, want)
		}
	}
}
