package main

import (
	"testing"

	"github.com/mqttpg/bridge/mapping"
	"github.com/mqttpg/bridge/store"
)

// A batch holds messages of several arenas, and some of none, in the order of receipt. Each is released as
// often as it was held; the messages behind the batch keep theirs.
func TestRelease(t *testing.T) {
	var current, arena *mapping.Arena
	var entries []store.Entry
	for i := range 1500 {
		size := 100
		if i%100 == 99 {
			size = 1 << 20 // too large for an arena
		}
		current, arena = current.Next(size)
		arena.Hold()
		arena.Bytes(min(size, 100))
		m := arena.Message()
		m.Topic = "t"
		entries = append(entries, store.Entry{Message: m, Arena: arena})
	}
	first, last := entries[0].Message, entries[len(entries)-1].Message
	release(entries[:1400])
	if first.Topic != "" {
		t.Error("what is settled is still there")
	}
	for i, e := range entries[1400:] {
		if e.Message.Topic != "t" {
			t.Fatalf("message %d behind the batch is gone", i)
		}
	}
	release(entries[1400:])
	release(nil)
	if _, arena = current.Next(100); arena == nil || last.Topic == "t" && entries[len(entries)-2].Message.Topic != "" {
		t.Error("the last arena was not emptied")
	}
}
