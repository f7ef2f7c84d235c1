package main

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/mqttpg/bridge/health"
)

// rateTau is how far back the present rate looks.
const rateTau = time.Minute

// rate smooths how fast a count rises. The zero value is ready.
type rate struct {
	mu       sync.Mutex
	begun    bool
	measured bool
	at       time.Time
	count    uint64
	value    float64 // per second
}

// observe takes in a count. While nothing can flow the rate stays as it is: in an outage it is the rate
// of before that says how long the broker's queue lasts.
func (r *rate) observe(now time.Time, count uint64, flows bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	passed := now.Sub(r.at).Seconds()
	if r.begun && flows && passed > 0 {
		present := float64(count-r.count) / passed
		weight := 1 - math.Exp(-passed/rateTau.Seconds())
		if !r.measured {
			weight = 1
		}
		r.value += weight * (present - r.value)
		r.measured = true
	}
	r.begun, r.at, r.count = true, now, count
}

// perSecond is the rate; false: not measured yet.
func (r *rate) perSecond() (float64, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.value, r.measured
}

// mosquittoQueue is Mosquitto's max_queued_messages where nothing else is configured.
const mosquittoQueue = 1000

// outageFacts are what the estimate is made of.
type outageFacts struct {
	queueLimit *int      // most messages the broker queues for a client; nil = unknown, 0 = no limit
	mosquitto  bool      // which holds what is in flight beside its queue
	window     int       // Receive Maximum
	qos        byte      // asked for
	rates      []float64 // of the sessions, messages per second
}

// survives is how long a database outage lasts before the broker's queue of the busiest session is full,
// given the most messages that it holds.
func (f *outageFacts) survives(limit int) float64 {
	busiest := slices.Max(f.rates)
	if limit == 0 || busiest == 0 {
		return math.Inf(1)
	}
	return float64(f.holds(limit)) / busiest
}

// holds is how many messages of a session wait in the broker and in the bridge before some are lost.
func (f *outageFacts) holds(limit int) int {
	if f.mosquitto {
		return limit + f.window
	}
	return limit // whether the others count what is in flight is not known
}

// outage tells the estimate, which may be +Inf, and is NaN while it is unknown.
func (f *outageFacts) outage() (told health.Outage, seconds float64) {
	told = health.Outage{QueueLimit: f.queueLimit}
	if len(f.rates) == 0 {
		told.Text = "unknown: no session of this process has been connected for long enough to tell a rate"
		return told, math.NaN()
	}
	total, busiest := 0.0, slices.Max(f.rates)
	for _, r := range f.rates {
		total += r
	}
	total = hundredths(total)
	told.ReceivedPerS = &total
	at := fmt.Sprintf("at %s messages/s on the busiest session", figure(busiest))
	switch {
	case f.qos == 0:
		told.Text = "none: with BRIDGE_MQTT_QOS=0 the broker queues nothing"
		told.Seconds = new(float64)
		return told, 0
	case f.queueLimit == nil:
		told.Text = "unknown: BRIDGE_BROKER_QUEUE_LIMIT is not set"
		if f.mosquitto && busiest > 0 {
			told.Text += fmt.Sprintf("; with Mosquitto's default of %d it would be %s, %s", mosquittoQueue, approximately(f.survives(mosquittoQueue)), at)
		}
		return told, math.NaN()
	}
	seconds = f.survives(*f.queueLimit)
	switch {
	case *f.queueLimit == 0:
		told.Text = "until the broker's memory or disk is full: its queue has no other limit"
	case busiest == 0:
		told.Text = fmt.Sprintf("nothing arrives at present; %d messages of each session are held", f.holds(*f.queueLimit))
	default:
		told.Text = fmt.Sprintf("about %s: %d messages are held, %s", approximately(seconds), f.holds(*f.queueLimit), at)
		shown := hundredths(seconds)
		told.Seconds = &shown
	}
	return told, seconds
}

func hundredths(x float64) float64 { return math.Round(x*100) / 100 }

// approximately is a duration for people.
func approximately(seconds float64) string {
	switch {
	case seconds < 120:
		return figure(seconds) + " s"
	case seconds < 2*3600:
		return figure(seconds/60) + " min"
	case seconds < 48*3600:
		return figure(seconds/3600) + " h"
	}
	return figure(seconds/86400) + " days"
}

// figure is a number with no more places than an estimate has a right to.
func figure(x float64) string {
	if x < 10 {
		return strconv.FormatFloat(math.Round(x*10)/10, 'f', -1, 64)
	}
	return strconv.FormatFloat(math.Round(x), 'f', -1, 64)
}
