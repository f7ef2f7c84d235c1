package store

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"
)

// heldUp is a line with three full batches, of which the first cannot be committed as long as a table is locked, and
// the second is sorted out already.
func heldUp(t *testing.T, lineLock time.Duration) (l *line, cfg Config, wait func() error, stop context.CancelCauseFunc, letGo func()) {
	t.Helper()
	_, pool := newDatabase(t)
	cfg = impatient(t)
	cfg.MaxMessages, cfg.lineLock, cfg.ParkAfter = 4, lineLock, time.Hour
	l = newLine(t, pool, cfg, own(t, pool, 1), keyless)
	if err := l.tables.Ensure(t.Context()); err != nil {
		t.Fatal(err)
	}
	tx, err := pool.Begin(context.WithoutCancel(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), "lock table readings"); err != nil {
		t.Fatal(err)
	}
	letGo = func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }
	t.Cleanup(letGo)
	for id := range uint16(12) {
		l.deliver(id+1, false, 0, "readings/a", "21.5")
	}
	ctx, stop := context.WithCancelCause(t.Context())
	wait = l.run(ctx)
	t.Cleanup(func() { stop(nil); <-l.writer.done })
	eventually(t, "the second batch is taken while the first is held up", func() bool { return l.writer.held() == 2 })
	if s := l.writer.Status(); s.InFlight != 12 || s.InFlightBytes != 12*300 || s.OldestUnacknowledged <= 0 {
		t.Errorf("%+v, want all 12 messages in flight", s)
	}
	l.want("readings", 12, 0, 0, 12)
	return l, cfg, wait, stop, letGo
}

// TestSortedOutAhead: what the broker delivers again while the first delivery is on its way into the database, or waits
// behind that, is recognised, and acknowledged after it.
func TestSortedOutAhead(t *testing.T) {
	t.Parallel()
	l, _, wait, _, letGo := heldUp(t, patience)
	for id := range uint16(8) {
		l.deliver(id+1, true, 0, "readings/a", "21.5")
	}
	if got := l.order(); len(got) > 0 {
		t.Errorf("%v settled before anything was committed", got)
	}
	letGo()
	if err := l.drain(); err != nil {
		t.Fatal(err)
	}
	if err := wait(); err != nil {
		t.Fatal(err)
	}
	if got, want := l.order(), []uint16{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 1, 2, 3, 4, 5, 6, 7, 8}; !slices.Equal(got, want) {
		t.Errorf("settled %v, want %v", got, want)
	}
	l.want("readings", 20, 12, 8, 0)
	if n := value[int](t, l.pool, "select count(*)::int from readings"); n != 12 {
		t.Errorf("%d rows, want 12", n)
	}
}

// TestConfirmedMeanwhile: what the broker has seen when a batch is begun stands in the ledger, though it was sorted out before.
func TestConfirmedMeanwhile(t *testing.T) {
	t.Parallel()
	l, _, wait, _, letGo := heldUp(t, patience)
	l.writer.Confirm(3)
	letGo()
	if err := l.drain(); err != nil {
		t.Fatal(err)
	}
	if err := wait(); err != nil {
		t.Fatal(err)
	}
	if got := list[int64](t, l.pool, "select confirmed from bridge.deliveries order by batch"); !slices.Equal(got, []int64{0, 3, 3}) {
		t.Errorf("confirmed %v, want 0, 3 and 3", got)
	}
}

// TestRenewedAhead: a session that goes to another broker and back stands in the database as it is, however many of its
// batches are sorted out before the first is committed.
func TestRenewedAhead(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	l := newLine(t, pool, impatient(t), own(t, pool, 1), keyless)
	l.writer.ledger = newLedger()
	var renews []bool
	for _, broker := range []string{"x", "y", "y", "x"} {
		l.deliver(1, false, 0, "readings/a", "21.5")
		entries, _ := l.writer.take(nil, false)
		entries[0].Broker = broker
		renews = append(renews, newBatch(entries, l.writer.ledger, nil).record.renews)
	}
	if want := []bool{true, true, false, true}; !slices.Equal(renews, want) {
		t.Errorf("the session is renewed by %v, want %v", renews, want)
	}
}

// wantAllAbandoned checks that nothing was settled, and all let go.
func (l *line) wantAllAbandoned(n uint64) {
	l.t.Helper()
	if got := l.order(); len(got) > 0 {
		l.t.Errorf("%v settled", got)
	}
	if got := l.counts("readings").Skipped[SkipAbandoned]; got != n {
		l.t.Errorf("%d abandoned, want %d", got, n)
	}
}

// TestAbandonedAhead: a writer that is stopped lets go of the batch at work and of the one behind it, and the next owner
// writes what comes again.
func TestAbandonedAhead(t *testing.T) {
	t.Parallel()
	l, cfg, wait, stop, letGo := heldUp(t, patience)
	why := errors.New("stopped at once")
	stop(why)
	if err := wait(); !errors.Is(err, why) {
		t.Errorf("Run ends with %v, want %v", err, why)
	}
	letGo()
	l.wantAllAbandoned(12)
	l.renew(cfg, own(t, l.pool, 2))
	for id := range uint16(12) {
		l.deliver(id+1, true, 0, "readings/a", "21.5")
	}
	l.flush()
	l.wantInOrder(12)
	if n := value[int](t, l.pool, "select count(*)::int from readings"); n != 12 {
		t.Errorf("%d rows, want 12", n)
	}
}

// TestFencedAhead: a writer that loses its lease in the first batch does not try the second.
func TestFencedAhead(t *testing.T) {
	t.Parallel()
	l, _, wait, _, letGo := heldUp(t, 300*time.Millisecond)
	own(t, l.pool, 2) // between two attempts
	if err := wait(); !errors.Is(err, ErrFenced) {
		t.Errorf("Run ends with %v, want %v", err, ErrFenced)
	}
	letGo()
	l.wantAllAbandoned(12)
	if n := value[int](t, l.pool, "select count(*)::int from readings"); n != 0 {
		t.Errorf("%d rows, want none", n)
	}
}

// twoTables is a line whose first full batch goes to one table and the small one behind it, of a session that the broker
// has begun anew, to another. Both tables are locked until they are let go.
func twoTables(t *testing.T, lineLock time.Duration) (l *line, letGo map[string]func()) {
	t.Helper()
	_, pool := newDatabase(t)
	cfg := impatient(t)
	cfg.MaxMessages, cfg.lineLock, cfg.ParkAfter = 4, lineLock, time.Hour
	other := keyless
	other.Name, other.Topic = "others", "others/{device_id}"
	l = newLine(t, pool, cfg, own(t, pool, 1), keyless, other)
	if err := l.tables.Ensure(t.Context()); err != nil {
		t.Fatal(err)
	}
	letGo = map[string]func(){}
	for _, table := range []string{"readings", "others"} {
		tx, err := pool.Begin(context.WithoutCancel(t.Context()))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec(t.Context(), "lock table "+table); err != nil {
			t.Fatal(err)
		}
		letGo[table] = func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }
		t.Cleanup(letGo[table])
	}
	for id := range uint16(4) {
		l.deliver(id+1, false, 0, "readings/a", "21.5")
	}
	for id := range uint16(2) {
		l.deliver(id+1, false, 1, "others/a", "21.5")
	}
	for id := range uint16(4) {
		l.deliver(id+1, false, 2, "others/a", "21.5")
	}
	return l, letGo
}

// ends drains a line of two tables.
func (l *line) ends(wait func() error) {
	l.t.Helper()
	if err := l.drain(); err != nil {
		l.t.Fatal(err)
	}
	if err := wait(); err != nil {
		l.t.Fatal(err)
	}
	l.want("readings", 4, 4, 0, 0)
	l.want("others", 6, 6, 0, 0)
}

// TestSettledBesideTheNext: a batch is acknowledged when it is committed, though the database holds up the one behind it.
func TestSettledBesideTheNext(t *testing.T) {
	t.Parallel()
	l, letGo := twoTables(t, patience)
	wait := l.run(t.Context())
	eventually(t, "the second batch is taken while the first is held up", func() bool { return l.writer.held() == 2 })
	letGo["readings"]()
	eventually(t, "the first batch is settled while the second is held up", func() bool { return len(l.order()) == 4 })
	letGo["others"]()
	l.ends(wait)
}

// TestRetryingBesideTheLast: that the database fails a batch is told, though the one before it is settled after that.
func TestRetryingBesideTheLast(t *testing.T) {
	t.Parallel()
	l, letGo := twoTables(t, 300*time.Millisecond)
	settle, w := l.writer.settle, l.writer
	var once sync.Once
	w.settle = func(entries []Entry) {
		once.Do(func() { // the first batch
			eventually(t, "the second batch fails", func() bool { return w.Status().LastErrorRoute == "others" })
		})
		settle(entries)
	}
	wait := l.run(t.Context())
	letGo["readings"]()
	eventually(t, "the first batch is settled", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return len(w.taken) > 0 && len(w.taken[0]) == 2
	})
	if s := w.Status(); !s.Retrying {
		t.Errorf("%+v, want it to be retrying", s)
	}
	letGo["others"]()
	l.ends(wait)
}

// held is how many batches are taken and not settled.
func (w *Writer) held() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.taken)
}
