package ingest

import (
	"math/rand/v2"
	"time"
)

const (
	// stableAfter is the age at which a connection counts as sound: its end is met with a quick
	// reconnect, and what went wrong before it is forgotten.
	stableAfter = 30 * time.Second

	// A connection that dies younger than shortLife, flapCount times within flapWindow, is most
	// likely being taken over: Mosquitto up to 2.0.14 says nothing when it drops the older of two
	// clients with one id.
	shortLife  = 5 * time.Second
	flapCount  = 3
	flapWindow = time.Minute

	maxBackoff = time.Minute
	// maxDialBackoff bounds the wait when nothing listens at the other end. It is short because
	// Mosquitto does not keep shared subscriptions over its restart: what is published between its
	// start and our SUBSCRIBE never reaches us.
	maxDialBackoff = 5 * time.Second
	// authBackoff keeps wrong credentials from filling the broker's log or locking the account.
	authBackoff = 30 * time.Second
	// Two owners of one client id end each other's connection; who was told so stays away for a
	// random while, so that they do not meet again in step.
	takeoverLeast, takeoverMost = 15 * time.Second, 60 * time.Second
)

// backoff decides how long to wait before the next round of connection attempts. It never says 0:
// autopaho's own default does on attempt 0, and two clients with one id then reconnected 29485
// times in 5 seconds. The zero value is ready for the first connection.
type backoff struct {
	connected bool // ever
	unstable  int  // connections since the last stable one

	// What happened since next was last called:
	reached bool          // a broker was reached and refused, or an unstable connection ended
	floor   time.Duration // the least wait that a reason code asks for

	shortLives []time.Time // ends of connections younger than shortLife, within flapWindow
	flapping   bool        // until a connection is stable
}

// lost notes the end of a connection that had its CONNACK.
func (b *backoff) lost(now time.Time, lifetime time.Duration, code byte) {
	if lifetime >= stableAfter {
		*b = backoff{connected: true, floor: floorFor(code)}
		return
	}
	b.connected, b.reached, b.floor = true, true, floorFor(code)
	b.unstable++
	if lifetime >= shortLife {
		return
	}
	recent := b.shortLives[:0]
	for _, t := range b.shortLives {
		if now.Sub(t) < flapWindow {
			recent = append(recent, t)
		}
	}
	b.shortLives = append(recent, now)
	b.flapping = b.flapping || len(b.shortLives) >= flapCount
}

// refused notes an attempt without a successful CONNACK; reached says whether a broker answered.
func (b *backoff) refused(reached bool, code byte) {
	b.reached = b.reached || reached
	b.floor = max(b.floor, floorFor(code))
}

// next returns the wait before a round of attempts, one for each URL. round counts the rounds since
// the last connection, from 0.
func (b *backoff) next(round int) time.Duration {
	reached, floor := b.reached, b.floor
	b.reached, b.floor = false, 0

	failures := b.unstable + round
	switch {
	case floor == takeoverLeast:
		return jitter(takeoverLeast, takeoverMost)
	case failures == 0 && floor == 0 && !b.connected:
		return time.Millisecond // the first connection of all
	case failures == 0 && floor == 0:
		return jitter(200*time.Millisecond, 500*time.Millisecond)
	}
	limit := maxDialBackoff
	if reached {
		limit = maxBackoff
	}
	d := limit
	if n := max(failures-1, 0); n < 6 { // 2^6 s is beyond every limit
		d = min(time.Second<<n, limit)
	}
	if d < floor {
		return jitter(floor, floor+floor/2)
	}
	return jitter(max(d/2, floor), d)
}

// floorFor is the least wait after a reason code.
func floorFor(code byte) time.Duration {
	switch code {
	case codeSessionTakenOver:
		return takeoverLeast
	case codeBadCredentials, codeNotAuthorized, codeBadAuthMethod, codeBanned:
		return authBackoff
	}
	return 0
}

// jitter returns a random duration between the two, so that many clients do not come back in step.
func jitter(from, to time.Duration) time.Duration {
	return from + rand.N(to-from+1) //nolint:gosec // nobody gains by guessing it
}
