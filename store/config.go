package store

import (
	"time"

	"go.uber.org/zap"
)

// Config is what writers and tables are told. A field that is zero takes its default, but for Linger
// and ParkAfter.
type Config struct {
	// Schema holds the bridge's own tables. Default bridge.
	Schema string
	// MaxMessages ends a batch. More per batch costs the database less CPU per message, as it visits each page
	// of the index once for several rows, and more memory. Default 7500.
	MaxMessages int
	// MaxBytes ends a batch, by Entry.Size; a larger message goes alone. Default 8 MiB.
	MaxBytes int
	// Linger is the greatest time from one batch to the next that is waited for more messages. At up to
	// 2 500 messages a second it is 5 ms, at more it rises with the rate. Zero commits at once.
	Linger time.Duration
	// Window is how many messages the broker sends before it waits for acknowledgements, as far as it was
	// asked to; 0: unknown. When half of it has gathered, the batch is taken at once.
	Window int
	// ParkAfter is how long the line is held up for a route whose table cannot be written before
	// its messages become dead letters, which are replayed when it can. All routes of a session wait
	// along, once per break. Zero parks at once.
	ParkAfter time.Duration
	// Log; nil: none.
	Log *zap.Logger

	// The rest is fixed; tests shorten it.
	attemptTimeout time.Duration // one round trip to the database; a black-holed one must not hang the loop
	lockTimeout    time.Duration // a lock that somebody else holds, for a replay that somebody asked for: nobody waits along
	lineLock       time.Duration // the same where the line waits along, or writers of the table; beyond it the attempt ends with 55P03
	shortLock      time.Duration // the same for a table that is known to be failing: N of them take N times this
	retryMin       time.Duration // first pause after an attempt that may be repeated
	retryMax       time.Duration // greatest pause
	maintainSoon   time.Duration // when maintenance that did not succeed is tried again
	mendEvery      time.Duration // how often a parked route is tried again
}

func (c Config) withDefaults() Config {
	set := func(d *time.Duration, to time.Duration) {
		if *d <= 0 {
			*d = to
		}
	}
	if c.Schema == "" {
		c.Schema = "bridge"
	}
	if c.MaxMessages <= 0 {
		c.MaxMessages = 7500
	}
	if c.MaxBytes <= 0 {
		c.MaxBytes = 8 << 20
	}
	if c.Log == nil {
		c.Log = zap.NewNop()
	}
	c.ParkAfter = max(c.ParkAfter, 0)
	set(&c.attemptTimeout, 60*time.Second)
	set(&c.lockTimeout, 10*time.Second)
	set(&c.lineLock, time.Second)
	set(&c.shortLock, 200*time.Millisecond)
	set(&c.retryMin, 100*time.Millisecond)
	set(&c.retryMax, 10*time.Second)
	set(&c.maintainSoon, 30*time.Second)
	set(&c.mendEvery, 5*time.Second)
	return c
}
