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

// TestRate reads as: each five seconds, the count so far and whether messages could flow.
func TestRate(t *testing.T) {
	var r rate
	now := time.Unix(0, 0)
	if _, measured := r.perSecond(); measured {
		t.Error("measured before anything was observed")
	}
	tell := func(count uint64, flows bool) float64 {
		now = now.Add(5 * time.Second)
		r.observe(now, count, flows)
		value, _ := r.perSecond()
		return value
	}
	tell(0, true)
	if got := tell(500, true); got != 100 {
		t.Errorf("the first rate is %g", got)
	}
	if got := tell(500, false); got != 100 { // an outage
		t.Errorf("without flow the rate is %g", got)
	}
	count := uint64(500)
	for range 60 {
		count += 50
		tell(count, true)
	}
	if got, _ := r.perSecond(); math.Abs(got-10) > 1 {
		t.Errorf("after five minutes at 10/s the rate is %g", got)
	}
	r.observe(now, count+1000, true) // no time has passed
	if got, _ := r.perSecond(); math.IsInf(got, 0) || math.IsNaN(got) {
		t.Errorf("rate %g", got)
	}
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
		{Message: mapping.Message{Topic: "devices/a/telemetry", QoS: 0}},
		{Message: mapping.Message{Topic: "devices/a/telemetry", QoS: 1}, PacketID: 1},
		{Message: mapping.Message{Topic: "devices/a/telemetry", QoS: 1}, PacketID: 1, Dup: true},
		{Message: mapping.Message{Topic: "devices/a/telemetry", QoS: 2}, PacketID: 2},
	} {
		p.deliver(t.Context(), d)
	}
	if n := p.queueable.Load(); n != 2 {
		t.Errorf("%d messages count, want 2", n)
	}
}
