package store

import (
	"testing"
	"time"
)

// TestWhenBatchesAreTaken looks at the queue at an instant, without a database.
func TestWhenBatchesAreTaken(t *testing.T) {
	t.Parallel()
	const ms = time.Millisecond
	for name, test := range map[string]struct {
		linger    time.Duration // as configured
		most      int           // messages
		last      time.Duration // since the last batch was taken
		lingering time.Duration // as the rate made it
		window    int
		waiting   int
		quiet     time.Duration // since the last of them came
		taken     bool
		after     int // believed window
	}{
		"a lone message in a quiet time":              {20 * ms, 2000, time.Second, 5 * ms, 0, 1, 0, true, 0},
		"a message soon after a batch":                {20 * ms, 2000, ms, time.Hour, 0, 1, 0, false, 0},
		"no linger":                                   {0, 2000, 0, 0, 0, 1, 0, true, 0},
		"enough":                                      {20 * ms, 2000, 0, time.Hour, 0, enough, 0, true, 0},
		"one less":                                    {20 * ms, 2000, 0, time.Hour, 0, enough - 1, 0, false, 0},
		"as many as are allowed":                      {20 * ms, 100, 0, time.Hour, 0, 100, 0, true, 0},
		"all that the broker sends":                   {20 * ms, 2000, 0, time.Hour, 20, 20, 0, true, 20},
		"less than that":                              {20 * ms, 2000, 0, time.Hour, 20, 19, 0, false, 20},
		"the stream stands still":                     {20 * ms, 2000, time.Hour, time.Minute, 0, 20, time.Hour, true, 20},
		"a window that is not filled":                 {20 * ms, 2000, time.Hour, time.Minute, 20, 10, 0, true, 0},
		"a slow stream is no window":                  {20 * ms, 2000, time.Hour, time.Minute, 0, leastWindow - 1, time.Hour, true, 0},
		"a window of more than is allowed in a batch": {20 * ms, 10, 0, time.Hour, 20, 10, 0, true, 20},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := NewWriter(nil, Config{Linger: test.linger, MaxMessages: test.most}, nil, nil, nil, nil, nil)
			now := time.Now()
			w.takenAt, w.linger = now.Add(-test.last), test.lingering
			if test.window > 0 {
				w.window, w.windowFor = test.window, windowFor
			}
			for range test.waiting {
				w.queue = append(w.queue, Entry{enqueuedAt: now.Add(-test.quiet)})
			}
			entries, wait := w.take(nil, false)
			if taken := len(entries) == test.waiting; taken != test.taken || taken == (wait > 0) {
				t.Errorf("%d entries, wait %v", len(entries), wait)
			}
			if w.windowFor > 0 && w.window != test.after || w.windowFor == 0 && test.after != 0 {
				t.Errorf("window %d for %d batches, want %d", w.window, w.windowFor, test.after)
			}
		})
	}
}

func TestLingerFollowsTheRate(t *testing.T) {
	t.Parallel()
	const most = 20 * time.Millisecond
	for _, test := range []struct {
		messages int
		passed   time.Duration
		most     time.Duration
		want     time.Duration
	}{
		{1, time.Hour, most, 5 * time.Millisecond},
		{5, 5 * time.Millisecond, most, 5 * time.Millisecond},
		{50, 10 * time.Millisecond, most, 10 * time.Millisecond},
		{500, 10 * time.Millisecond, most, most},
		{2000, 0, most, most},
		{1, time.Hour, 2 * time.Millisecond, 2 * time.Millisecond},
		{500, 10 * time.Millisecond, 0, 0},
	} {
		if got := lingerFor(test.most, test.messages, test.passed); got != test.want {
			t.Errorf("%d messages in %v, at most %v: %v, want %v", test.messages, test.passed, test.most, got, test.want)
		}
	}
}

// TestWorthwhile: the broker must not have to wait for a batch, nor the batch for the broker.
func TestWorthwhile(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ most, asked, seen, want int }{
		{5000, 0, 0, enough},
		{5000, 2000, 0, 1000},
		{5000, 30_000, 0, enough},
		{5000, 500, 0, 250},
		{5000, 1, 0, 1},
		{100, 2000, 0, 100},
		{5000, 2000, 20, 20},
		{5000, 20, 20, 10},
	} {
		w := NewWriter(nil, Config{MaxMessages: test.most, Window: test.asked}, nil, nil, nil, nil, nil)
		if test.seen > 0 {
			w.window, w.windowFor = test.seen, windowFor
		}
		if got := w.worthwhile(); got != test.want {
			t.Errorf("at most %d a batch, %d asked for, %d seen: %d are worthwhile, want %d", test.most, test.asked, test.seen, got, test.want)
		}
	}
}
