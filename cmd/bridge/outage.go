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

// The present rate is the greater one of a quick average and a slow one: it rises at once when load
// begins and falls slowly, so that an outage is told to be survived for too short a time rather than
// for too long.
const (
	quickTau = 5 * time.Second
	slowTau  = time.Minute
	// settleTime is how long messages must have flowed on end before those of a session that the broker
	// had already are counted: the first ones may have waited in its queue.
	settleTime = 10 * time.Second
)

// rate tells how fast a count rises that counts the messages of a session. The zero value is ready.
type rate struct {
	mu          sync.Mutex
	quick, slow average

	begun   bool
	at      time.Time // of the last observation, as all below
	count   uint64
	flowed  bool
	since   time.Time // since when messages have flowed on end
	backlog float64   // messages that the broker seems to have queued since measuring began
}

// flow is how the messages of a session stand while they are counted.
type flow struct {
	flows   bool    // they can arrive
	present bool    // the broker had the session already, and may have queued messages for it
	queue   float64 // most that it queues; +Inf: no limit is known
}

// observe takes in a count. What cannot arrive at present, as in an outage, leaves the rate as it is,
// for the rate of before says how long the broker's queue lasts; and as many messages as would have
// come meanwhile are not counted when they come faster than that afterwards.
func (r *rate) observe(now time.Time, count uint64, f flow) {
	r.mu.Lock()
	defer r.mu.Unlock()
	passed := now.Sub(r.at)
	if r.begun && passed <= 0 {
		return
	}
	switch {
	case !r.begun:
		r.since = now
	case !r.quick.measured():
		r.settle(now, passed, float64(count-r.count), f)
	default:
		r.follow(passed, float64(count-r.count), f)
	}
	r.begun, r.at, r.count, r.flowed = true, now, count, f.flows
}

// settle waits until the count says something, and begins with it.
func (r *rate) settle(now time.Time, passed time.Duration, arrived float64, f flow) {
	if !f.flows {
		r.since = now
	}
	if f.flows && (!f.present || now.Sub(r.since) >= settleTime) {
		r.add(passed, arrived)
	}
}

func (r *rate) follow(passed time.Duration, arrived float64, f flow) {
	expected := r.value() * passed.Seconds()
	switch {
	case arrived > expected:
		waited := min(arrived-expected, r.backlog)
		r.backlog -= waited
		arrived -= waited
	case !f.flows:
		r.backlog = min(r.backlog+expected-arrived, f.queue)
		return
	case r.flowed: // they come no faster than before, so nothing waits
		r.backlog = 0
	}
	r.add(passed, arrived)
}

func (r *rate) add(passed time.Duration, arrived float64) {
	r.quick.add(passed, quickTau, arrived/passed.Seconds())
	r.slow.add(passed, slowTau, arrived/passed.Seconds())
}

func (r *rate) value() float64 { return max(r.quick.value(), r.slow.value()) }

// perSecond is the rate; false: not measured yet.
func (r *rate) perSecond() (float64, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.quick.measured() {
		return 0, false
	}
	return r.value(), true
}

// average is an exponential average that is right from the first value on: it is divided by the weight
// of what it has seen.
type average struct{ sum, weight float64 }

func (a *average) add(passed, tau time.Duration, value float64) {
	keep := math.Exp(-passed.Seconds() / tau.Seconds())
	a.sum = a.sum*keep + value*(1-keep)
	a.weight = a.weight*keep + 1 - keep
}

func (a *average) measured() bool { return a.weight > 0 }
func (a *average) value() float64 { return a.sum / a.weight }

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
		told.Text = "unknown: no session of this process has kept up with the broker for long enough to tell a rate"
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
