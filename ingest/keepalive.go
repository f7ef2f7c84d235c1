package ingest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/eclipse/paho.golang/paho/log"
)

// pingAgain is when to try again to send a PINGREQ while something else is being written.
const pingAgain = 100 * time.Millisecond

// errPingTimeout ends a connection whose broker answers nothing any more.
var errPingTimeout = errors.New("no PINGRESP in time")

// keepAlive holds the keepalive facts of one connection.
type keepAlive struct {
	mu           sync.Mutex
	interval     time.Duration // effective; 0 = off
	unanswered   []time.Time   // PINGREQs without PINGRESP, oldest first
	requests     uint64
	responses    uint64
	lastRequest  time.Time
	lastResponse time.Time
	lastRead     time.Time // bytes of any kind arrived
	lastWritten  time.Time // the broker made room for what we write, by reading
	rtt          time.Duration
	paused       bool // the reader waits until there is room for more messages, and sees nothing
	resumed      time.Time
	changed      chan struct{} // closed by the next PINGRESP; nil while nobody waits
}

// pingDeadline is how long the broker may be silent after a PINGREQ.
func pingDeadline(interval time.Duration) time.Duration {
	return max(min(interval/2, 10*time.Second), time.Second)
}

// request notes a PINGREQ about to be sent and returns its number, from 1.
func (k *keepAlive) request() uint64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.lastRequest = time.Now()
	k.unanswered = append(k.unanswered, k.lastRequest)
	k.requests++
	return k.requests
}

// response notes a PINGRESP and returns the round-trip time. PINGRESP names no PINGREQ, but the
// answers come in order. One that answers nothing is ignored.
func (k *keepAlive) response() (rtt time.Duration, ok bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.unanswered) == 0 {
		return 0, false
	}
	k.lastResponse = time.Now()
	k.rtt = k.lastResponse.Sub(k.unanswered[0])
	k.unanswered = k.unanswered[1:]
	k.responses++
	if k.changed != nil {
		close(k.changed)
		k.changed = nil
	}
	return k.rtt, true
}

// pending returns a channel that the next PINGRESP closes, or nil if PINGREQ n is answered.
func (k *keepAlive) pending(n uint64) <-chan struct{} {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.responses >= n {
		return nil
	}
	if k.changed == nil {
		k.changed = make(chan struct{})
	}
	return k.changed
}

func (k *keepAlive) read(at time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.lastRead = at
}

// wrote notes a write that had to wait for the broker to read, or would have had to.
func (k *keepAlive) wrote(at time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.lastWritten = at
}

func (k *keepAlive) pause(paused bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.paused = paused
	k.resumed = time.Now()
}

func (k *keepAlive) setInterval(interval time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.interval = interval
}

// next says when to look again, whether to send a PINGREQ now, and whether the broker is gone.
//
// A PINGREQ goes out every interval whatever else was sent. That is more than [MQTT-3.1.2-20] asks
// for, and gives a busy session as fresh a round-trip time as an idle one.
//
// The broker counts as gone when a PINGREQ is unanswered and nothing at all has arrived for the
// deadline. A PINGRESP queues behind PUBLISH packets, so one that is late while data flows says
// nothing. Neither does one that is late while the reader waits for room: it cannot be seen then, and
// the broker still sees our PINGREQs. A broker that reads what we can write no faster than it does is there as well.
func (k *keepAlive) next(now time.Time) (wake time.Time, ping, gone bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	wake = k.lastRequest.Add(k.interval)
	if !now.Before(wake) {
		ping = true
		wake = now.Add(k.interval)
	}
	if len(k.unanswered) > 0 && !k.paused {
		silent := k.unanswered[0]
		for _, t := range []time.Time{k.lastRead, k.lastWritten, k.resumed} {
			if t.After(silent) {
				silent = t
			}
		}
		limit := silent.Add(pingDeadline(k.interval))
		gone = !now.Before(limit)
		if limit.Before(wake) {
			wake = limit
		}
	} else if limit := now.Add(pingDeadline(k.interval)); ping && limit.Before(wake) {
		wake = limit
	}
	return wake, ping, gone
}

// pinger sends the PINGREQs in paho's place: paho's own keeps its facts private. It has no state, so
// one serves all connections of a session. paho calls Run for each, with the interval of CONNECT or
// the Server Keep Alive of CONNACK [MQTT-3.1.2-21].
type pinger struct{}

// Run pings until ctx is done or the broker is gone.
func (pinger) Run(ctx context.Context, nc net.Conn, keepAlive uint16) error {
	c, ok := nc.(*conn)
	if !ok {
		return fmt.Errorf("keepalive on a foreign connection of type %T", nc)
	}
	interval := time.Duration(keepAlive) * time.Second
	// A longer Server Keep Alive, or none, says how soon the broker gives a silent client up. How soon we
	// notice a silent broker is ours to say: nothing forbids more PINGREQs than the broker asks for.
	if own := c.session.cfg.KeepAlive; own > 0 && (interval == 0 || own < interval) {
		interval = own
	}
	c.keepAlive.setInterval(interval)
	if interval == 0 {
		return nil
	}
	timer := time.NewTimer(0) // the first at once: the status has a round-trip time from the start
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		wake, ping, gone := c.keepAlive.next(time.Now())
		if gone {
			c.fail(errPingTimeout)
			return errPingTimeout
		}
		if ping {
			sent, err := c.tryPing()
			if err != nil {
				return err
			}
			if !sent { // what is being written serves as well [MQTT-3.1.2-20]
				wake = time.Now().Add(pingAgain)
			}
		}
		timer.Reset(time.Until(wake))
	}
}

// What paho tells the pinger, the connection has seen already.

// PacketSent does nothing.
func (pinger) PacketSent() {}

// PacketReceived does nothing.
func (pinger) PacketReceived() {}

// PingResp does nothing.
func (pinger) PingResp() {}

// SetDebug does nothing.
func (pinger) SetDebug(log.Logger) {}
