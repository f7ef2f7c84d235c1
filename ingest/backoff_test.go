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
		round    int
		min, max time.Duration
		flapping bool
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
			{refused: true, round: 2, min: s, max: 2 * s},
			{refused: true, round: 3, min: 2 * s, max: 4 * s},
			{refused: true, round: 4, min: 2500 * time.Millisecond, max: 5 * s},
			{refused: true, round: 100, min: 2500 * time.Millisecond, max: 5 * s},
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
			{lost: time.Hour, code: 0x8E, min: 15 * s, max: 60 * s},
			{lost: time.Millisecond, code: 0x8E, min: 15 * s, max: 60 * s},
		},
		"dropped young three times in a minute": {
			{lost: 4 * s, min: s / 2, max: s},
			{lost: 4 * s, min: s, max: 2 * s},
			{lost: 4 * s, min: 2 * s, max: 4 * s, flapping: true},
			{lost: 20 * s, min: 4 * s, max: 8 * s, flapping: true}, // not stable yet
			{lost: 30 * s, min: 200 * time.Millisecond, max: 500 * time.Millisecond},
		},
		"dropped at a middle age is no flapping": {
			{lost: 10 * s, min: s / 2, max: s},
			{lost: 10 * s, min: s, max: 2 * s},
			{lost: 10 * s, min: 2 * s, max: 4 * s},
			{lost: 10 * s, min: 4 * s, max: 8 * s},
		},
	}
	for name, steps := range tests {
		t.Run(name, func(t *testing.T) {
			for range 100 { // the jitter is random
				var b backoff
				now := time.Now()
				for i, st := range steps {
					if st.lost > 0 {
						now = now.Add(st.lost)
						b.lost(now, st.lost, st.code)
					}
					if st.refused {
						b.refused(st.reached, st.code)
					}
					d := b.next(st.round)
					now = now.Add(d)
					if d < st.min || d > st.max || b.flapping != st.flapping {
						t.Fatalf("step %d: %s, flapping %v, want %s to %s, %v", i, d, b.flapping, st.min, st.max, st.flapping)
					}
				}
			}
		})
	}
}

func TestShortLivesAreForgotten(t *testing.T) {
	var b backoff
	now := time.Now()
	for range 10 {
		b.lost(now, time.Second, 0)
		now = now.Add(31 * time.Second) // never three within a minute
	}
	if b.flapping {
		t.Error("flapping")
	}
}
