package ingest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"testing/synctest"
	"time"
)

func TestPace(t *testing.T) {
	type read struct {
		after    time.Duration
		messages int // in it
		full     bool
		pause    time.Duration // after it
	}
	const plenty = 2000 // messages in flight
	ms := time.Millisecond
	repeat := func(n int, r read) (list []read) {
		for range n {
			list = append(list, r)
		}
		return list
	}
	for name, reads := range map[string][]read{
		"1000 messages a second":               repeat(100, read{ms, 1, false, 0}),
		"1000 messages a second, in bursts":    repeat(50, read{20 * ms, 20, false, 0}),
		"one message after another, and none":  {{0, 1, false, 0}, {time.Hour, 1, false, 0}},
		"a burst out of silence is read alone": append([]read{{0, 1, false, 0}, {time.Hour, 1, false, 0}}, repeat(19, read{ms, 100, false, 0})...),
		"20 000 a second, then silence": append(append(append([]read{{0, 0, false, 0}},
			repeat(19, read{ms, 20, false, 0})...), repeat(100, read{ms, 20, false, gatherFor})...),
			read{time.Second, 1, false, 0}, read{ms, 1, false, 0}),
		"a backlog fills the buffer": append(append([]read{{0, 0, true, 0}},
			repeat(100, read{ms, 50, true, 0})...), read{ms, 50, false, gatherFor}, read{ms, 50, true, 0}),
	} {
		t.Run(name, func(t *testing.T) {
			var p pace
			now := time.Now()
			for i, r := range reads {
				now = now.Add(r.after)
				p.read(r.full, now)
				for range r.messages {
					p.message(1)
				}
				if got := p.pause(plenty); got != r.pause {
					t.Fatalf("after read %d: %v, want %v", i, got, r.pause)
				}
			}
		})
	}
}

// TestPaceLeavesWork: a pause is short beside the time that the messages in flight last.
func TestPaceLeavesWork(t *testing.T) {
	for _, tt := range []struct {
		rate     int
		qos      byte
		inFlight int64
		want     time.Duration
	}{
		{20_000, 1, 800, gatherFor},
		{20_000, 2, 200, 3300 * time.Microsecond},
		{20_000, 1, 120, 2 * time.Millisecond},
		{20_000, 1, 119, 0},
		{10_000, 1, 20, 0}, // Mosquitto's window
		{5_000, 1, 19, 0},
		{50_000, 1, 100, 0},
		{100_000, 1, 2000, 6660 * time.Microsecond},
		{100_000, 1, 600, 2 * time.Millisecond},
		{20_000, 0, 0, gatherFor}, // no acknowledgement is waited for
		{3_000, 0, 0, 0},
		{3_000, 1, 3000, 0},
	} {
		var p pace
		now := time.Now()
		p.read(false, now)
		for range tt.rate / 10 {
			p.message(tt.qos)
		}
		p.read(false, now.Add(100*time.Millisecond))
		if got := p.pause(tt.inFlight); got != tt.want {
			t.Errorf("%d messages a second of QoS %d, %d in flight: %v, want %v", tt.rate, tt.qos, tt.inFlight, got, tt.want)
		}
	}
}

// ticking says a packet each time, at intervals.
type ticking struct {
	packet []byte
	every  time.Duration
	left   int
	next   time.Time
	reads  int
}

func (s *ticking) Read(p []byte) (n int, err error) {
	s.reads++
	if s.next.IsZero() {
		s.next = time.Now()
	}
	time.Sleep(time.Until(s.next)) // until there is one at least
	for ; s.left > 0 && !s.next.After(time.Now()) && n+len(s.packet) <= len(p); s.left-- {
		n += copy(p[n:], s.packet)
		s.next = s.next.Add(s.every)
	}
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

// TestReadsGather: at a high rate there is a read for each pause and not for each message, and no message
// waits longer than that; at a low rate each message is delivered when it comes.
func TestReadsGather(t *testing.T) {
	for _, tt := range []struct {
		rate, reads int // reads at most
		late        time.Duration
	}{
		{1000, 1002, 0},
		{20_000, 84 + 401, gatherFor}, // before the rate is known, each message is one
	} {
		t.Run(fmt.Sprint(tt.rate), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				said := &ticking{packet: unhex(t, "32 07 0001 't' 0001 00 'x'"), every: time.Second / time.Duration(tt.rate), left: tt.rate}
				n, late := 0, time.Duration(0)
				var began time.Time
				r := newIdleRig(t, func(cfg *Config) {
					cfg.Deliver = func(context.Context, *Delivery) {
						late = max(late, time.Since(began.Add(time.Duration(n)*said.every)))
						n++
					}
				}, "mqtt://test")
				began = time.Now()
				c := newConn(r.session, sink{Reader: said})
				c.generation.Store(1)
				if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
					t.Fatal(err)
				}
				if n != tt.rate || said.reads > tt.reads || late > tt.late {
					t.Errorf("%d messages in %d reads, the latest %v late", n, said.reads, late)
				}
			})
		})
	}
}
