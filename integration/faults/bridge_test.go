//go:build unix

package faults

import (
	"strings"
	"time"
)

// bridgeScenarios are those in which the bridge itself suffers.
var bridgeScenarios = []*scenario{
	{
		name: "kill at random", short: true,
		trouble: func(s *stage) {
			kills := 0
			for ; s.loading(); kills++ {
				s.pause(0, 1200*time.Millisecond)
				s.kill(s.bridges[0])
				if s.rng.IntN(4) > 0 { // otherwise the next life waits for the lease of the last
					s.expire()
				}
				must(s.t, s.bridges[0].Start(s.ctx)) // and may be killed before it is ready
				if s.rng.IntN(4) > 0 {
					s.ready(s.bridges[0])
				}
			}
			s.factf("%d kills", kills)
		},
	},
	{
		name: "kill before commit", short: true,
		trouble: func(s *stage) {
			kills := 0
			for ; s.loading(); kills++ {
				s.pause(50*time.Millisecond, 500*time.Millisecond)
				s.dbLink.lose(upstream)
				s.until("messages wait for their commit", func() bool { return s.metric(s.bridges[0], "bridge_messages_in_flight") > 0 })
				s.pause(0, 200*time.Millisecond)
				s.killAndMend()
			}
			s.factf("%d kills", kills)
		},
	},
	{
		name: "kill between commit and acknowledgement", short: true,
		trouble: func(s *stage) {
			kills, hits := 0, 0
			for ; s.loading() || hits == 0 && kills < 20; kills++ {
				s.pause(50*time.Millisecond, 500*time.Millisecond)
				s.loseAnswerOfCommit()
				s.killAndMend()
				// What the next life recognises was committed by the last and not acknowledged.
				if s.within(500*time.Millisecond, func() bool { return s.metric(s.bridges[0], "bridge_messages_duplicate_total") > 0 }) {
					hits++
				}
			}
			if hits == 0 {
				s.t.Error("no kill fell between a commit and its acknowledgement")
			}
			s.factf("%d kills, %d of them there", kills, hits)
		},
	},
	{
		name: "kill while acknowledging", short: true,
		trouble: func(s *stage) {
			cuts, kills := 0, 0
			for ; s.loading(); cuts++ {
				s.pause(50*time.Millisecond, 500*time.Millisecond)
				lost := s.lostConnections()
				// A PUBACK has four bytes: most of these limits cut one in two.
				s.brokerLink.toxic("limit_data", upstream, map[string]any{"bytes": s.rng.IntN(400)})
				s.until("the link is cut", func() bool { return s.lostConnections() > lost })
				if s.rng.IntN(2) == 0 {
					s.brokerLink.mend() // this time the same process reconnects
					s.ready(s.bridges[0])
					continue
				}
				s.killAndMend()
				kills++
			}
			s.factf("%d cuts, %d of them with a kill", cuts, kills)
		},
	},
	{
		name: "rolling restart of three replicas", short: true,
		env: map[string]string{"BRIDGE_MQTT_SESSIONS": "4"}, replicas: 3, rate: 2000, gap: true,
		trouble: func(s *stage) {
			rounds := 0
			for ; rounds == 0 || s.loading(); rounds++ {
				for _, bridge := range s.bridges {
					s.terminate(bridge)
					must(s.t, bridge.Start(s.ctx))
					s.awaitReady()
				}
			}
			s.factf("%d rounds", rounds)
		},
	},
}

// killAndMend kills the only bridge while its links are bad, mends them and starts it again.
func (s *stage) killAndMend() {
	s.t.Helper()
	s.kill(s.bridges[0])
	s.dbLink.mend()
	s.brokerLink.mend()
	s.expire()
	s.revive(s.bridges[0])
}

// loseAnswerOfCommit drops what the database says until a batch is committed of which the bridge
// cannot know. When none is seen for a moment, the last one was of that kind already.
func (s *stage) loseAnswerOfCommit() {
	s.t.Helper()
	before := s.batches()
	s.dbLink.lose(downstream)
	s.within(300*time.Millisecond, func() bool { return s.batches() > before+1 })
}

// lostConnections is how often a bridge's connection to the broker has ended.
func (s *stage) lostConnections() int {
	n := 0
	for line := range strings.Lines(s.broker.Logs(s.ctx)) {
		if strings.Contains(line, "Client bridge-") && (strings.Contains(line, "closed its connection") || strings.Contains(line, "disconnected")) {
			n++
		}
	}
	return n
}
