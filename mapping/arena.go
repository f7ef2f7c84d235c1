package mapping

import (
	"slices"
	"sync"
	"sync/atomic"
)

// The sizes of an arena: what a few hundred messages of everyday size and their rows need. A line that is
// full holds about eighty.
const (
	arenaBytes    = 64 << 10
	arenaMessages = 192

	// maxArenaMessage is the greatest message that goes into an arena. A larger one is allocated for itself:
	// so its memory is free as soon as it is settled, and it leaves no gap behind.
	maxArenaMessage = arenaBytes / 8
)

// Arena holds the messages of a run of receipts, their bytes, and the outcomes and rows that became of
// them, so that none of it is allocated and collected one by one.
//
// One goroutine fills it. It begins with [Arena.Next] for each message, and calls [Arena.Hold] for
// each one that it hands on; whoever settles that one calls [Arena.Release], from any goroutine, and must
// not use anything of it afterwards: when all are released the memory is overwritten and serves other
// messages. An arena whose messages are abandoned is left to the garbage collector.
//
// A nil *Arena is valid and allocates everything one by one.
type Arena struct {
	bytes    slab[byte]
	messages slab[Message]
	outcomes slab[Outcome]
	rows     slab[Row]

	held atomic.Int64 // one by who fills it, and one for each message handed on
}

var arenas = sync.Pool{New: func() any {
	return &Arena{
		bytes:    slab[byte]{make([]byte, 0, arenaBytes)},
		messages: slab[Message]{make([]Message, 0, arenaMessages)},
		outcomes: slab[Outcome]{make([]Outcome, 0, arenaMessages)},
		rows:     slab[Row]{make([]Row, 0, arenaMessages)},
	}
}}

// Next returns an arena with room for a message of n bytes, or nil if it is too large for any. current is
// the arena to go on with: a itself, emptied if nothing in it is in use any more, or another one when a is
// full or nil. Who calls it has no further use for a.
func (a *Arena) Next(n int) (current, arena *Arena) {
	if n > maxArenaMessage {
		return a, nil
	}
	switch {
	case a == nil:
	case a.held.Load() == 1: // only the filling goroutine's own: nobody can have come to hold another
		a.empty()
		return a, a
	case a.bytes.room(n) && a.messages.room(1) && a.outcomes.room(1) && a.rows.room(1):
		return a, a
	default:
		a.Release(1)
	}
	a = arenas.Get().(*Arena)
	a.held.Store(1)
	return a, a
}

// Hold keeps the arena as it is until Release is called once more.
func (a *Arena) Hold() {
	if a != nil {
		a.held.Add(1)
	}
}

// Release takes n holds back.
func (a *Arena) Release(n int) {
	if a == nil || n == 0 {
		return
	}
	switch left := a.held.Add(-int64(n)); {
	case left < 0:
		panic("mapping: an arena is released more often than it was held")
	case left == 0:
		a.empty()
		arenas.Put(a)
	}
}

// Bytes returns n bytes to be filled.
func (a *Arena) Bytes(n int) []byte {
	s := a.slabs()
	return s.bytes.keep(s.bytes.open(n)[:n])
}

// Message returns a place for a message.
func (a *Arena) Message() *Message {
	s := a.slabs()
	return &s.messages.keep(s.messages.open(1)[:1])[0]
}

// empty overwrites what was in use: for the collector, and so that whoever still reads it is found out.
func (a *Arena) empty() {
	a.bytes.empty()
	a.messages.empty()
	a.outcomes.empty()
	a.rows.empty()
}

// nowhere has no room, so that everything is allocated. It is never written to.
var nowhere Arena

func (a *Arena) slabs() *Arena {
	if a == nil {
		return &nowhere
	}
	return a
}

// slab is memory for values that are appended: first opened, then filled by append, then kept.
type slab[T any] struct {
	used []T // up to its length
}

func (s *slab[T]) room(n int) bool { return cap(s.used)-len(s.used) >= n }

// open returns an empty slice that at least n values can be appended to. All the room that is left is
// behind it, so the slab must not be asked for another before this one is kept or given up.
func (s *slab[T]) open(n int) []T {
	if !s.room(n) {
		return make([]T, 0, n)
	}
	return s.used[len(s.used):]
}

// keep returns what was filled, without room to append. If append has moved it out of the slab, it has
// been allocated.
func (s *slab[T]) keep(filled []T) []T {
	if n := len(s.used); len(filled) > 0 && n < cap(s.used) && &filled[0] == &s.used[:n+1][n] {
		s.used = s.used[:n+len(filled)]
	}
	return slices.Clip(filled)
}

func (s *slab[T]) empty() {
	clear(s.used)
	s.used = s.used[:0]
}
