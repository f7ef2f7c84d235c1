package ingest

import "time"

const (
	// gatherAbove is the rate in messages per second from which on a connection is not read at once. Below it
	// a pause would gather too few to be worth it, and everybody's latency is what it can be.
	gatherAbove = 4000

	// gatherFor is how long messages may gather in the kernel meanwhile. A message waits longer than that for
	// the others of its batch. A pause of less than gatherLeast is none.
	gatherFor, gatherLeast = 12 * time.Millisecond, 2 * time.Millisecond

	// gatherShare is which part of the messages in flight a pause may be worth: brokers send so many before
	// they wait for acknowledgements, Mosquitto 20 unless told otherwise, and do not say so. A pause
	// that is long beside the work that is left would have both sides wait for one another.
	gatherShare = 3

	// paceEvery is how often the rate is measured anew, at a read.
	paceEvery = 20 * time.Millisecond
)

// pace decides when a connection is read. Brokers send messages as they come, one at a time, and a process
// that is woken for each spends more on waking than on the message. So where they come fast, it lets some
// gather first: of 3000 reads a second at 20 000 messages a second are left some 90.
//
// TLS and WebSocket are read at once.
type pace struct {
	// pieces says that a read brings one TLS record or WebSocket message, and more may have arrived with it.
	// Mosquitto puts each packet into one of its own: with a pause before each read, 500 a second were read.
	// The layer below reads many at a time anyway.
	pieces bool

	messages int       // since the time
	limited  bool      // and there were some that the broker wants acknowledged
	since    time.Time // the rate was measured; zero: never
	behind   bool      // there was as much to read as there was room, or more

	// As measured last.
	rate       float64 // messages a second
	wasLimited bool
}

// message notes that one was read.
func (p *pace) message(qos byte) {
	p.messages++
	p.limited = p.limited || qos > 0
}

// read notes that something has arrived; full says that it fills all there was room for.
func (p *pace) read(full bool, at time.Time) {
	p.behind = full
	if d := at.Sub(p.since); d >= paceEvery {
		p.rate, p.wasLimited = float64(p.messages)/d.Seconds(), p.limited
		p.messages, p.limited, p.since = 0, false, at
	}
}

// sparse says that messages come so slowly that each is read for itself.
func (p *pace) sparse() bool { return p.rate < gatherAbove }

// pause is how long to let gather before the next read, while so many messages wait for their
// acknowledgement.
func (p *pace) pause(inFlight int64) time.Duration {
	if p.sparse() || p.behind || p.pieces {
		return 0
	}
	if !p.wasLimited { // QoS 0: the broker waits for nothing
		return gatherFor
	}
	d := time.Duration(float64(inFlight/gatherShare) / p.rate * float64(time.Second))
	if d < gatherLeast {
		return 0
	}
	return min(d, gatherFor)
}
