package ingest

import "time"

const (
	// gatherAbove is the rate in messages per second from which on a connection is not read at once. Below it
	// a pause would gather too few to be worth it, and everybody's latency is what it can be.
	gatherAbove = 4000

	// gatherFor is how long messages may gather in the kernel meanwhile. A message waits longer than that for
	// the others of its batch.
	gatherFor = 2 * time.Millisecond

	// paceEvery is how often the rate is measured anew, at a read.
	paceEvery = 20 * time.Millisecond
)

// pace decides when a connection is read. Brokers send messages as they come, one at a time, and a process
// that is woken for each spends more on waking than on the message. So where they come fast, it lets some
// gather first: of 3000 reads a second at 20 000 messages a second are left 500 to 900.
//
// A lower bound for the kernel to wake at (SO_RCVLOWAT), and a timer for what stays below it, saved no more.
type pace struct {
	// pieces says that a read brings one TLS record or WebSocket message, and more may have arrived with it.
	// Mosquitto puts each packet into one of its own: with a pause before each read, 500 a second were read.
	// The layer below reads many at a time anyway.
	pieces bool

	messages int       // since the time
	since    time.Time // the rate was measured; zero: never
	fast     bool
	behind   bool // there was as much to read as there was room, or more
}

// read notes that something has arrived; full says that it fills all there was room for.
func (p *pace) read(full bool, at time.Time) {
	p.behind = full
	if d := at.Sub(p.since); d >= paceEvery {
		p.fast = float64(p.messages) >= gatherAbove*d.Seconds()
		p.messages, p.since = 0, at
	}
}

// pause is how long to let gather before the next read.
func (p *pace) pause() time.Duration {
	if p.fast && !p.behind && !p.pieces {
		return gatherFor
	}
	return 0
}
