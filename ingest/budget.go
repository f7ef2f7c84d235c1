package ingest

import (
	"context"
	"fmt"
	"sync"
)

// Budget bounds the bytes of all messages that were received and are not yet committed, over all
// sessions of the process. Receive Maximum and [Config.MaxInFlight] alone do not: they count messages,
// not bytes, and leave out QoS 0.
//
// Who acquires waits in line, so that a large message is not overtaken for ever by small ones. A
// Budget is safe for concurrent use.
type Budget struct {
	limit int64

	mu      sync.Mutex
	used    int64
	waiters []*budgetWaiter // first come, first served
}

type budgetWaiter struct {
	n     int64
	ready chan struct{} // closed when the bytes are granted
}

// NewBudget returns a budget of limit bytes. With a limit of 0 or less every message is admitted
// alone.
func NewBudget(limit int64) *Budget { return &Budget{limit: limit} }

// Acquire takes n bytes and waits for them as long as need be. n larger than the whole limit is
// granted when nothing else is held: such a message would otherwise never arrive. The error is that
// of ctx, and then nothing was taken.
func (b *Budget) Acquire(ctx context.Context, n int64) error {
	b.mu.Lock()
	if len(b.waiters) == 0 && b.fits(n) {
		b.used += n
		b.mu.Unlock()
		return nil
	}
	w := &budgetWaiter{n: n, ready: make(chan struct{})}
	b.waiters = append(b.waiters, w)
	b.mu.Unlock()

	select {
	case <-w.ready:
		return nil
	case <-ctx.Done():
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case <-w.ready: // granted in the meantime: give it back
		b.used -= n
	default:
		for i := range b.waiters {
			if b.waiters[i] == w {
				b.waiters = append(b.waiters[:i], b.waiters[i+1:]...)
				break
			}
		}
	}
	b.grant() // who waited behind this one may fit now
	return fmt.Errorf("wait for %d bytes of the message budget: %w", n, ctx.Err())
}

// TryAcquire takes n bytes if they are free and nobody waits for some, and says whether it did.
func (b *Budget) TryAcquire(n int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.waiters) > 0 || !b.fits(n) {
		return false
	}
	b.used += n
	return true
}

// Charge takes n bytes without asking whether they are free: what a message that was admitted turned
// out to need beyond its own size. The next one waits the longer.
func (b *Budget) Charge(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.used += n
}

// Release returns n bytes that were acquired.
func (b *Budget) Release(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.used -= n; b.used < 0 {
		panic("ingest: more released than was acquired of the message budget")
	}
	b.grant()
}

// Used returns the bytes now held.
func (b *Budget) Used() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used
}

// Limit returns the bytes that may be held.
func (b *Budget) Limit() int64 { return b.limit }

func (b *Budget) fits(n int64) bool { return b.used == 0 || b.used+n <= b.limit }

func (b *Budget) grant() {
	for len(b.waiters) > 0 && b.fits(b.waiters[0].n) {
		b.used += b.waiters[0].n
		close(b.waiters[0].ready)
		b.waiters = b.waiters[1:]
	}
}
