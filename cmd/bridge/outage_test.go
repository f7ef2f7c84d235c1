package main

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/mqttpg/bridge/ingest"
	"github.com/mqttpg/bridge/mapping"
	"github.com/mqttpg/bridge/store"
	"go.uber.org/zap/zaptest"
)

func TestOutage(t *testing.T) {
	limit := func(n int) *int { return &n }
	for name, test := range map[string]struct {
		facts   outageFacts
		seconds float64 // NaN: unknown
		shown   bool    // as a number in /health
		text    string
	}{
		"nothing measured yet":           {outageFacts{queueLimit: limit(1000), qos: 1}, math.NaN(), false, "unknown: no session of this process"},
		"limit not told":                 {outageFacts{qos: 1, rates: []float64{3}}, math.NaN(), false, "unknown: BRIDGE_BROKER_QUEUE_LIMIT is not set"},
		"not told, Mosquitto":            {outageFacts{qos: 1, mosquitto: true, window: 2000, rates: []float64{100, 50}}, math.NaN(), false, "unknown: BRIDGE_BROKER_QUEUE_LIMIT is not set; with Mosquitto's default of 1000 it would be 30 s, at 100 messages/s on the busiest session"},
		"not told, Mosquitto, no rate":   {outageFacts{qos: 1, mosquitto: true, rates: []float64{0}}, math.NaN(), false, "unknown: BRIDGE_BROKER_QUEUE_LIMIT is not set"},
		"no limit":                       {outageFacts{qos: 1, queueLimit: limit(0), rates: []float64{100}}, math.Inf(1), false, "until the broker's memory or disk is full"},
		"nothing arrives":                {outageFacts{qos: 1, queueLimit: limit(1000), rates: []float64{0}}, math.Inf(1), false, "nothing arrives at present; 1000 messages"},
		"Mosquitto":                      {outageFacts{qos: 1, mosquitto: true, window: 2000, queueLimit: limit(1000), rates: []float64{50, 100}}, 30, true, "about 30 s: 3000 messages are held, at 100 messages/s on the busiest session"},
		"others may count the window in": {outageFacts{qos: 1, window: 2000, queueLimit: limit(1000), rates: []float64{0.1}}, 10000, true, "about 2.8 h: 1000 messages are held, at 0.1 messages/s"},
		"QoS 0":                          {outageFacts{queueLimit: limit(1000), rates: []float64{5}}, 0, true, "none: with BRIDGE_MQTT_QOS=0"},
	} {
		t.Run(name, func(t *testing.T) {
			told, seconds := test.facts.outage()
			if seconds != test.seconds && !(math.IsNaN(seconds) && math.IsNaN(test.seconds)) {
				t.Errorf("%g seconds", seconds)
			}
			if (told.Seconds != nil) != test.shown || test.shown && *told.Seconds != seconds {
				t.Errorf("shown %v", told.Seconds)
			}
			if !strings.HasPrefix(told.Text, test.text) {
				t.Errorf("text %q", told.Text)
			}
			if (told.ReceivedPerS == nil) != (len(test.facts.rates) == 0) {
				t.Errorf("rate %v", told.ReceivedPerS)
			}
		})
	}
}

// arrivals plays a session second by second.
type arrivals struct {
	rate
	now   time.Time
	count float64
}

// pass lets seconds pass in which so many messages per second arrive, and returns the rate after each.
func (a *arrivals) pass(seconds int, perSecond float64, f flow) (rates []float64) {
	for range seconds {
		a.now, a.count = a.now.Add(time.Second), a.count+perSecond
		a.observe(a.now, uint64(a.count), f)
		if r, measured := a.perSecond(); measured {
			rates = append(rates, r)
		}
	}
	return rates
}

func TestRate(t *testing.T) {
	fresh, known := flow{flows: true, queue: math.Inf(1)}, flow{flows: true, present: true, queue: math.Inf(1)}
	away := flow{present: true, queue: math.Inf(1)}
	begun := func(perSecond float64) *arrivals {
		a := &arrivals{now: time.Unix(0, 0)}
		a.observe(a.now, 0, flow{})
		a.pass(600, perSecond, fresh)
		return a
	}
	within := func(t *testing.T, rates []float64, least, most float64) {
		t.Helper()
		if len(rates) == 0 {
			t.Error("not measured")
		}
		for i, r := range rates {
			if !(r >= least && r <= most) {
				t.Errorf("%d: %g, want %g to %g", i, r, least, most)
			}
		}
	}

	t.Run("a steady rate is right from the first second on", func(t *testing.T) {
		within(t, begun(100).pass(1, 100, fresh), 99.9, 100.1)
		a := &arrivals{now: time.Unix(0, 0)}
		a.observe(a.now, 0, flow{})
		within(t, a.pass(60, 100, fresh), 99.9, 100.1)
	})
	t.Run("load after silence is told within seconds", func(t *testing.T) {
		rates := begun(0).pass(60, 100, fresh)
		within(t, rates[11:], 90, 100.1)
		within(t, rates[19:], 98, 100.1)
	})
	t.Run("what falls is believed later", func(t *testing.T) {
		rates := begun(100).pass(300, 10, fresh)
		within(t, rates[:20], 70, 100)
		within(t, rates[299:], 10, 11)
	})
	t.Run("an outage leaves it as it is, and what was queued is not counted", func(t *testing.T) {
		a := begun(600)
		within(t, a.pass(60, 0, away), 599.9, 600.1)
		within(t, a.pass(6, 6600, known), 599, 601) // 36 000 that waited, and those of the six seconds
		within(t, a.pass(60, 600, known), 599, 601)
	})
	t.Run("nor is it where the window is full now and then while the queue runs empty", func(t *testing.T) {
		a := begun(600)
		a.pass(60, 0, away)
		for range 3 {
			within(t, a.pass(1, 6600, away), 599, 601)
			within(t, a.pass(1, 6600, known), 599, 601)
		}
		within(t, a.pass(60, 600, known), 599, 601)
	})
	t.Run("after it a real rise is told, for no more can have waited than the queue holds", func(t *testing.T) {
		a := begun(100)
		limited := flow{flows: true, present: true, queue: 1000}
		a.pass(3600, 0, flow{present: true, queue: 1000})
		within(t, a.pass(30, 200, limited)[24:], 180, 200.1)
	})
	t.Run("as soon as they come no faster than before nothing waits any more", func(t *testing.T) {
		a := begun(100)
		a.pass(600, 0, away)
		a.pass(2, 99, known)
		within(t, a.pass(15, 200, known)[11:], 180, 200.1)
	})
	t.Run("more than the database takes is told as what it takes", func(t *testing.T) {
		within(t, begun(100).pass(15, 5000, away)[11:], 4400, 5000)
	})
	t.Run("what a session holds when it is taken over is not counted", func(t *testing.T) {
		a := &arrivals{now: time.Unix(0, 0)}
		a.observe(a.now, 0, flow{})
		if r := a.pass(5, 0, away); r != nil {
			t.Errorf("not connected yet: %v", r)
		}
		if r := append(a.pass(8, 6000, known), a.pass(1, 6000, away)...); r != nil {
			t.Errorf("the queue runs empty: %v", r)
		}
		within(t, a.pass(60, 600, known), 599, 601)
	})
	t.Run("no time passes", func(t *testing.T) {
		a := begun(100)
		a.count += 900
		a.observe(a.now, uint64(a.count), fresh)
		within(t, a.pass(1, 100, fresh), 200, 300) // counted then, not for ever
	})
}

func TestApproximately(t *testing.T) {
	for seconds, want := range map[float64]string{0.04: "0 s", 1.25: "1.3 s", 119: "119 s", 120: "2 min", 7199: "120 min", 7200: "2 h", 200000: "2.3 days", 1e7: "116 days"} {
		if got := approximately(seconds); got != want {
			t.Errorf("%g: %s, want %s", seconds, got, want)
		}
	}
}

// TestQueueable: what says how fast the broker's queue would fill is what the broker would queue, each
// message once.
func TestQueueable(t *testing.T) {
	environment(t, append(telemetry, "BRIDGE_DATABASE_URL=postgres://u@127.0.0.1:1/d")...)
	cfg, err := loadConfig()
	if err != nil {
		t.Fatal(err)
	}
	s, err := newService(t.Context(), cfg, zaptest.NewLogger(t))
	if err != nil {
		t.Fatal(err)
	}
	defer s.pool.Close()
	p, err := s.newPipeline(&store.Lease{ClientID: "bridge-0"}, s.log)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []*ingest.Delivery{
		{Message: &mapping.Message{Topic: "devices/a/telemetry", QoS: 0}},
		{Message: &mapping.Message{Topic: "devices/a/telemetry", QoS: 1}, PacketID: 1},
		{Message: &mapping.Message{Topic: "devices/a/telemetry", QoS: 1}, PacketID: 1, Dup: true},
		{Message: &mapping.Message{Topic: "devices/a/telemetry", QoS: 2}, PacketID: 2},
	} {
		p.deliver(t.Context(), d)
	}
	if n := p.queueable.Load(); n != 2 {
		t.Errorf("%d messages count, want 2", n)
	}
}
