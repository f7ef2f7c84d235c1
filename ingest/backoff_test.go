package ingest

import (
	"testing"
	"time"
)

func TestBackoff(t *testing.T) {
	const s = time.Second
	type step struct {
		lost     time.Duration // lifetime of a connection that ended, if not 0
		refused  bool
		reached  bool
		code     byte
		silent   bool
		round    int
		min, max time.Duration
		named    bool
	}
	tests := map[string][]step{
		"the first attempt is immediate but never 0": {{min: 1, max: 10 * time.Millisecond}},
		"a stable connection comes back quickly": {
			{lost: 30 * s, min: 200 * time.Millisecond, max: 500 * time.Millisecond},
			{lost: time.Hour, code: 0x8B, min: 200 * time.Millisecond, max: 500 * time.Millisecond},
		},
		"nothing listens: short waits, so that a restarted broker is found in time": {
			{lost: time.Hour, min: 200 * time.Millisecond, max: 500 * time.Millisecond},
			{refused: true, round: 1, min: s / 2, max: s},
			{refused: true, round: 2, min: s / 2, max: s},
			{refused: true, round: 100, min: s / 2, max: s},
		},
		"a broker that refuses: up to a minute": {
			{refused: true, reached: true, code: 0x88, round: 1, min: s / 2, max: s},
			{refused: true, reached: true, code: 0x88, round: 6, min: 16 * s, max: 32 * s},
			{refused: true, reached: true, code: 0x88, round: 7, min: 30 * s, max: 60 * s},
			{refused: true, reached: true, code: 0x88, round: 1000, min: 30 * s, max: 60 * s},
		},
		"wrong credentials": {
			{refused: true, reached: true, code: 0x86, round: 1, min: 30 * s, max: 45 * s},
			{refused: true, reached: true, code: 0x87, round: 2, min: 30 * s, max: 45 * s},
			{refused: true, reached: true, code: 0x8C, round: 8, min: 30 * s, max: 60 * s},
		},
		"told of a takeover, however old the connection": {
			{lost: time.Hour, code: 0x8E, min: 15 * s, max: 60 * s, named: true},
			{lost: time.Millisecond, code: 0x8E, min: 15 * s, max: 60 * s, named: true},
		},
		"dropped young again and again: the one that comes back slows down, and stays away from then on": {
			{lost: 4 * s, silent: true, min: s / 2, max: s},
			{lost: 4 * s, silent: true, min: 5 * s, max: 7500 * time.Millisecond, named: true},
			{lost: 4 * s, silent: true, min: 30 * s, max: 60 * s, named: true},
			{lost: s, silent: true, min: 30 * s, max: 60 * s, named: true},
			{lost: 20 * s, silent: true, min: 30 * s, max: 60 * s, named: true}, // not stable yet
			{lost: 200 * s, silent: true, min: 200 * time.Millisecond, max: 500 * time.Millisecond},
		},
		"the one that was there names it as soon, and comes back quickly when it was left alone": {
			{lost: time.Hour, silent: true, min: 200 * time.Millisecond, max: 500 * time.Millisecond},
			{lost: s, silent: true, min: s / 2, max: s, named: true},
			{lost: 40 * s, silent: true, min: 200 * time.Millisecond, max: 500 * time.Millisecond, named: true},
			{lost: 40 * s, silent: true, min: 200 * time.Millisecond, max: 500 * time.Millisecond, named: true},
			{lost: 60 * s, silent: true, min: 200 * time.Millisecond, max: 500 * time.Millisecond}, // the quarrel is long ago
		},
		"a broker that was away in between explains it": {
			{lost: 4 * s, silent: true, min: s / 2, max: s},
			{refused: true, round: 1, min: s / 2, max: s},
			{lost: 4 * s, silent: true, min: s / 2, max: s}, // and what it did before is forgotten
			{refused: true, reached: true, code: 0x89, round: 1, min: s, max: 2 * s},
			{lost: 4 * s, silent: true, min: s, max: 2 * s},
		},
		"an address that does not answer beside the one that does explains nothing": {
			{lost: 4 * s, silent: true, min: s / 2, max: s},
			{refused: true, lost: 4 * s, silent: true, min: 5 * s, max: 7500 * time.Millisecond, named: true},
			{refused: true, lost: 4 * s, silent: true, min: 30 * s, max: 60 * s, named: true},
		},
		"so does a broker that says why, or a network": {
			{lost: 4 * s, code: 0x8B, min: s / 2, max: s},
			{lost: 4 * s, min: s, max: 2 * s},
			{lost: 4 * s, code: 0x82, min: 2 * s, max: 4 * s},
			{lost: 4 * s, min: 4 * s, max: 8 * s},
		},
		"dropped at a middle age is no quarrel": {
			{lost: 10 * s, silent: true, min: s / 2, max: s},
			{lost: 10 * s, silent: true, min: s, max: 2 * s},
			{lost: 10 * s, silent: true, min: 2 * s, max: 4 * s},
			{lost: 10 * s, silent: true, min: 4 * s, max: 8 * s},
		},
	}
	for name, steps := range tests {
		t.Run(name, func(t *testing.T) {
			for range 100 { // the jitter is random
				var b backoff
				now := time.Now()
				for i, st := range steps {
					named := false
					if st.refused {
						b.refused(st.reached, st.code)
					}
					if st.lost > 0 {
						now = now.Add(st.lost)
						named = b.lost(now, st.lost, st.code, st.silent)
					}
					d := b.next(st.round)
					now = now.Add(d)
					if d < st.min || d > st.max || named != st.named {
						t.Fatalf("step %d: %s, named %v, want %s to %s, %v", i, d, named, st.min, st.max, st.named)
					}
				}
			}
		})
	}
}

func TestShortLivesAreForgotten(t *testing.T) {
	var b backoff
	now := time.Now()
	if b.lost(now, time.Second, 0, true) || !b.accepted(now.Add(time.Second)) || b.accepted(now.Add(suspectWindow)) {
		t.Error("one young end counts when the broker lets the client in again, and not for ever")
	}
	if b.lost(now, time.Second, 0, true); b.accepted(now.Add(time.Second)) {
		b.refused(false, 0)
		b.next(1)
	}
	if b.accepted(now.Add(2 * time.Second)) {
		t.Error("a broker that was away in between has explained it")
	}
	for range 10 {
		if b.lost(now, time.Second, 0, true) || b.flapping {
			t.Error("two that are far apart make a quarrel")
		}
		now = now.Add(suspectWindow)
	}
}
