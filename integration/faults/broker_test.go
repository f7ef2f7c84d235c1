//go:build unix

package faults

import (
	"context"
	"time"
)

// brokerScenarios are those in which the broker or the way to it suffers.
var brokerScenarios = []*scenario{
	{
		name: "broker halts (half-open)",
		env:  map[string]string{"BRIDGE_MQTT_KEEPALIVE": "2s"},
		trouble: func(s *stage) {
			halts := 0
			for ; s.loading(); halts++ {
				s.pause(300*time.Millisecond, 2*time.Second)
				must(s.t, s.broker.Pause(s.ctx))
				s.pause(time.Second, 8*time.Second)
				must(s.t, s.broker.Resume(s.ctx))
				s.awaitReady()
			}
			s.factf("%d times", halts)
		},
	},
	{
		name: "TCP resets to the broker", short: true,
		prepare: func(s *stage) { s.brokerLink.prepareReset() },
		trouble: func(s *stage) {
			resets := 0
			for ; s.loading(); resets++ {
				s.pause(50*time.Millisecond, 800*time.Millisecond)
				s.brokerLink.reset()
				s.awaitReady()
			}
			s.factf("%d resets", resets)
		},
	},
	{
		name: "slow and narrow links",
		trouble: func(s *stage) {
			for s.loading() {
				for _, l := range []*link{s.brokerLink, s.dbLink} {
					to := pick(s, []direction{upstream, downstream})
					l.toxic("latency", to, map[string]any{"latency": 20 + s.rng.IntN(200), "jitter": s.rng.IntN(20)})
					l.toxic("bandwidth", to, map[string]any{"rate": 20 + s.rng.IntN(100)})
				}
				s.pause(500*time.Millisecond, 3*time.Second)
				s.brokerLink.mend()
				s.dbLink.mend()
				s.pause(0, 500*time.Millisecond)
			}
		},
	},
	{
		name:    "broker restarts, shared subscription",
		trouble: restartBroker,
	},
	{
		name: "broker restarts, exclusive subscription", env: map[string]string{"BRIDGE_MQTT_MODE": "exclusive"},
		trouble: restartBroker,
	},
	{
		// The promise is for what the broker keeps: here it has saved everything before it dies, and the
		// publisher waits for the subscription, which a shared one of Mosquitto has to make anew.
		name:   "broker killed when it has saved",
		broker: []string{"autosave_on_changes true", "autosave_interval 1"},
		trouble: func(s *stage) {
			db := s.connect()
			defer func() { _ = db.Close(context.WithoutCancel(s.ctx)) }()
			kills := 0
			for ; kills == 0 || s.loading(); kills++ {
				s.pause(500*time.Millisecond, 2*time.Second)
				s.load.held.Store(true)
				s.settle(db, 20*time.Second)
				must(s.t, s.broker.Kill(s.ctx))
				must(s.t, s.broker.Start(s.ctx))
				s.awaitReady()
				s.load.held.Store(false)
			}
			s.factf("%d kills", kills)
		},
	},
	{
		name:    "broker killed, shared subscription",
		broker:  []string{"autosave_on_changes true", "autosave_interval 1"},
		trouble: killBroker,
		forgive: brokerRollback, patience: 8 * time.Second,
	},
	{
		name:    "broker killed, exclusive subscription",
		env:     map[string]string{"BRIDGE_MQTT_MODE": "exclusive"},
		broker:  []string{"autosave_on_changes true", "autosave_interval 1"},
		trouble: killBroker,
		forgive: brokerRollback, patience: 8 * time.Second,
	},
}

// brokerRollback is what a killed Mosquitto does, however often it saves.
var brokerRollback = forgiveness{
	missing: 100, extra: true, // it was a handful each time
	because: "Mosquitto acknowledges before it saves: what came after the last save is lost with it, " +
		"and what it had delivered after it may come again without DUP",
}

func restartBroker(s *stage) { s.bounceBroker("restarts", s.broker.Stop) }
func killBroker(s *stage)    { s.bounceBroker("kills", s.broker.Kill) }

// bounceBroker ends the broker and starts it again, over and over.
func (s *stage) bounceBroker(what string, end func(context.Context) error) {
	times := 0
	for ; s.loading(); times++ {
		s.pause(500*time.Millisecond, 2*time.Second)
		must(s.t, end(s.ctx))
		s.pause(0, 500*time.Millisecond)
		must(s.t, s.broker.Start(s.ctx))
		s.awaitReady()
	}
	s.factf("%d %s", times, what)
}
