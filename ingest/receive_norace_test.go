//go:build !race

package ingest

import (
	"bytes"
	"testing"
)

// TestReceivingDoesNotAllocate: not for a message, that is; an arena now and then. The race detector has
// sync.Pool forget things at random.
func TestReceivingDoesNotAllocate(t *testing.T) {
	const n = 20_000
	l := newLine(t)
	said := bytes.Join([][]byte{unhex(t, connack), telemetry(n)}, nil)
	l.run(t, bytes.NewReader(said)) // the first time buffers grow
	l.rows = 0
	if allocations := l.run(t, bytes.NewReader(said)); allocations > n/20 {
		t.Errorf("%d allocations for %d messages", allocations, n)
	}
	if l.rows != n {
		t.Errorf("%d rows", l.rows)
	}
}
