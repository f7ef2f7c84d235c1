//go:build unix

package faults

import (
	"regexp"
	"slices"
	"time"

	"github.com/mqttpg/bridge/integration/provider"
)

// bridgeScenarios are those in which the bridge itself suffers.
var bridgeScenarios = []*scenario{
	{
		name: "kill at random", short: true,
		trouble: (*stage).killAtRandom,
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
				if cuts%3 == 0 { // the same process reconnects; several cuts in a row make it hesitate
					s.brokerLink.mend()
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
	{
		name: "three replicas to one and back",
		env:  map[string]string{"BRIDGE_MQTT_SESSIONS": "4"}, replicas: 3, rate: 2000, gap: true,
		trouble: func(s *stage) {
			rounds := 0
			for ; rounds == 0 || s.loading(); rounds++ {
				s.rng.Shuffle(len(s.bridges), func(i, j int) { s.bridges[i], s.bridges[j] = s.bridges[j], s.bridges[i] })
				for _, bridge := range s.bridges[1:] {
					s.terminate(bridge)
				}
				s.until("one owns all", func() bool { return s.owned(s.bridges[0]) == s.sessions() })
				s.awaitReady()
				for _, bridge := range s.bridges[1:] {
					must(s.t, bridge.Start(s.ctx))
				}
				s.until("each owns some", func() bool {
					return !slices.ContainsFunc(s.bridges, func(b *provider.Bridge) bool { return s.owned(b) == 0 })
				})
				s.awaitReady()
			}
			s.factf("%d rounds", rounds)
		},
	},
	{
		name: "owner halted beyond its lease", replicas: 2, env: map[string]string{"BRIDGE_MQTT_SESSIONS": "2"}, gap: true,
		trouble: func(s *stage) {
			halts := 0
			for ; halts == 0 || s.loading(); halts++ {
				owner, other := s.bridges[halts%2], s.bridges[1-halts%2]
				s.pause(0, 500*time.Millisecond)
				must(s.t, owner.Pause())
				s.until("the other has taken its sessions", func() bool { return s.owned(other) == s.sessions() })
				s.pause(0, 2*time.Second)
				must(s.t, owner.Resume())
				s.until("both have a session", func() bool { return s.owned(owner) > 0 && s.owned(other) > 0 })
				s.awaitReady()
			}
			s.factf("%d times", halts)
		},
	},
}

// killAtRandom kills the only bridge at any time, also before it is ready, until the load is over.
func (s *stage) killAtRandom() {
	s.t.Helper()
	kills := 0
	for ; s.loading(); kills++ {
		s.pause(0, 1200*time.Millisecond)
		s.kill(s.bridges[0])
		if s.rng.IntN(4) > 0 { // otherwise the next life waits for the lease of the last
			s.expire()
		}
		must(s.t, s.bridges[0].Start(s.ctx))
		if s.rng.IntN(4) > 0 {
			s.ready(s.bridges[0])
		}
	}
	s.factf("%d kills", kills)
}

// connections is how often the broker has let a session in.
func (s *stage) connections() int {
	return len(connected.FindAllString(s.broker.Logs(s.ctx), -1))
}

// What the broker logs of the sessions, whose client ids end in a number; the bridge may have other
// connections.
var (
	connected = regexp.MustCompile(`New client connected from .* as bridge-\d+ \(`)
	lost      = regexp.MustCompile(`Client bridge-\d+ (.* )?(closed its connection|disconnected|has exceeded timeout)`)
)

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

// lostConnections is how often a session's connection to the broker has ended.
func (s *stage) lostConnections() int {
	return len(lost.FindAllString(s.broker.Logs(s.ctx), -1))
}
