package ingest

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestBudgetTry(t *testing.T) {
	b := NewBudget(10)
	steps := []struct {
		do   string
		n    int64
		ok   bool
		used int64
	}{
		{"take", 4, true, 4},
		{"take", 6, true, 10},
		{"take", 1, false, 10},
		{"give", 6, true, 4},
		{"take", 7, false, 4},
		{"give", 4, true, 0},
		{"take", 11, true, 11}, // larger than the limit: admitted alone
		{"take", 1, false, 11},
		{"charge", 5, true, 16},
		{"give", 11, true, 5},
		{"take", 6, false, 5},
		{"give", 5, true, 0},
	}
	for i, step := range steps {
		ok := true
		switch step.do {
		case "take":
			ok = b.TryAcquire(step.n)
		case "charge":
			b.Charge(step.n)
		default:
			b.Release(step.n)
		}
		if ok != step.ok || b.Used() != step.used {
			t.Errorf("step %d: ok %v, used %d, want %v, %d", i, ok, b.Used(), step.ok, step.used)
		}
	}
	if b.Limit() != 10 {
		t.Errorf("limit %d", b.Limit())
	}
}

func TestBudgetWaitsInLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBudget(10)
		if !b.TryAcquire(8) {
			t.Fatal("empty budget refused")
		}
		var mu sync.Mutex
		var got []int64
		for _, n := range []int64{20, 1, 2} { // the first is larger than the limit
			go func() {
				if err := b.Acquire(t.Context(), n); err != nil {
					t.Error(err)
				}
				mu.Lock()
				got = append(got, n)
				mu.Unlock()
			}()
			synctest.Wait()
		}
		if b.TryAcquire(1) {
			t.Error("overtook those who wait")
		}
		b.Release(8)
		synctest.Wait()
		if b.Used() != 20 {
			t.Errorf("used %d: the large one must be admitted alone, and first", b.Used())
		}
		b.Release(20)
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		if len(got) != 3 || got[0] != 20 || b.Used() != 3 {
			t.Errorf("granted %v, used %d", got, b.Used())
		}
	})
}

func TestBudgetGivesUpWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBudget(10)
		b.TryAcquire(9)
		ctx, cancel := context.WithCancel(t.Context())
		first, second := make(chan error, 1), make(chan error, 1)
		go func() { first <- b.Acquire(ctx, 5) }()
		synctest.Wait()
		go func() { second <- b.Acquire(t.Context(), 1) }()
		synctest.Wait()
		cancel()
		if err := <-first; !errors.Is(err, context.Canceled) {
			t.Errorf("err %v", err)
		}
		if err := <-second; err != nil { // stood behind the one that left, and fits
			t.Error(err)
		}
		if b.Used() != 10 {
			t.Errorf("used %d", b.Used())
		}
	})
}

// A grant that meets the end of the waiter's context must not be lost, whoever wins.
func TestBudgetGrantRacesWithContext(t *testing.T) {
	for range 20 {
		b := NewBudget(1)
		b.TryAcquire(1)
		ctx, cancel := context.WithCancel(context.Background())
		result := make(chan error, 1)
		go func() { result <- b.Acquire(ctx, 1) }()
		eventually(t, "somebody waits", func() bool {
			b.mu.Lock()
			defer b.mu.Unlock()
			return len(b.waiters) == 1
		})
		b.mu.Lock()
		cancel()
		time.Sleep(time.Millisecond) // the waiter has seen the end of its context and wants the lock
		b.used--
		b.grant()
		b.mu.Unlock()
		if err := <-result; err == nil {
			b.Release(1)
		}
		if b.Used() != 0 {
			t.Fatalf("used %d", b.Used())
		}
	}
}

func TestBudgetReleaseOfTooMuchPanics(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("went unnoticed")
		}
	}()
	NewBudget(1).Release(1)
}
