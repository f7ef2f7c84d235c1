package ingest

import (
	"math/rand/v2"
	"slices"
	"time"
)

const (
	// stableAfter is the age at which a connection counts as sound: its end is met with a quick
	// reconnect, and what went wrong before it is forgotten.
	stableAfter = 30 * time.Second

	// A broker that closes connections without a word, one of them younger than shortLife, and lets
	// the client in again each time at the first attempt, is most likely being used by another client
	// with the same id: Mosquitto up to 2.0.14 says nothing when it drops the older of the two. Two
	// such ends within suspectWindow are named, and so is one young end when the next attempt succeeds.
	// Whose connections die young again and again is the one that comes back too often: after two it
	// slows down, and from the third on it stays away.
	shortLife     = 5 * time.Second
	suspectCount  = 2
	suspectWindow = 2 * time.Minute

	maxBackoff = time.Minute
	// maxDialBackoff bounds the wait when nothing listens at the other end. It is short because
	// Mosquitto does not keep shared subscriptions over its restart: what is published between its
	// start and our SUBSCRIBE never reaches us. One attempt a second costs nobody anything.
	maxDialBackoff = time.Second
	// authBackoff keeps wrong credentials from filling the broker's log or locking the account.
	authBackoff = 30 * time.Second
	// Two owners of one client id end each other's connection; who was told so stays away for a
	// random while, so that they do not meet again in step.
	takeoverLeast, takeoverMost = 15 * time.Second, 60 * time.Second
	// Who only suspects it has come back several times already. Against one that comes back at once,
	// the second is two connections in 45 s.
	suspectFirst, suspectLeast = 5 * time.Second, 30 * time.Second
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

	silent   []silentEnd // within suspectWindow, the oldest first
	flapping bool        // until a connection is stable
}

// silentEnd is the end of a connection that the broker closed without a word.
type silentEnd struct {
	at    time.Time
	young bool // the connection was younger than shortLife
}

// lost notes the end of a connection that had its CONNACK. silent says that the broker closed it
// without a word. The answer is whether another client probably uses the client id.
func (b *backoff) lost(now time.Time, lifetime time.Duration, code byte, silent bool) (contested bool) {
	b.connected, b.floor = true, floorFor(code)
	if b.reached = lifetime < stableAfter; b.reached {
		b.unstable++
	} else {
		b.unstable, b.flapping = 0, false
	}
	if !silent {
		return code == codeSessionTakenOver
	}
	b.silent = append(b.silent, silentEnd{now, lifetime < shortLife})
	young := b.young(now)
	if b.reached && young >= suspectCount {
		b.floor = max(b.floor, suspectFirst)
		b.flapping = b.flapping || young > suspectCount
	}
	return young > 0 && len(b.silent) >= suspectCount
}

// accepted notes a connection, and answers as lost does.
func (b *backoff) accepted(now time.Time) (contested bool) { return b.young(now) > 0 }

// young counts the connections within suspectWindow that died young and silently.
func (b *backoff) young(now time.Time) (n int) {
	b.silent = slices.DeleteFunc(b.silent, func(e silentEnd) bool { return now.Sub(e.at) >= suspectWindow })
	for _, e := range b.silent {
		if e.young {
			n++
		}
	}
	return n
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
	if round > 0 {
		// A whole round without a connection explains why earlier ones ended: the broker was in trouble.
		// An address that does not answer beside one that does explains nothing.
		b.silent = nil
		if !reached {
			b.unstable = 0
		}
	}

	failures := b.unstable + round
	switch {
	case floor == takeoverLeast:
		return jitter(takeoverLeast, takeoverMost)
	case b.flapping && round == 0:
		return jitter(suspectLeast, takeoverMost)
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
