//go:build unix

package faults

import (
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/mqttpg/bridge/integration/provider"
)

// bridgeScenarios are those in which the bridge itself suffers.
var bridgeScenarios = []*scenario{
	{
		name: "kill at random", short: true,
		trouble: func(s *stage) { s.killAtRandom(1) },
	},
	{
		// Packet Identifiers come round more than once, and between twins only they and DUP differ.
		name: "70 000 identical messages in one session", kinds: onlyTwins, limit: 70_000, rate: 4000,
		env:     map[string]string{"BRIDGE_MQTT_RECEIVE_MAXIMUM": "500", "BRIDGE_BATCH_MAX_MESSAGES": "200"},
		trouble: func(s *stage) { s.killAtRandom(10) },
	},
	{
		name: "identical-200k", kinds: onlyTwins, limit: 200_000, rate: 2000,
		env:     map[string]string{"BRIDGE_MQTT_RECEIVE_MAXIMUM": "500", "BRIDGE_BATCH_MAX_MESSAGES": "200"},
		trouble: func(s *stage) { s.killAtRandom(50) },
	},
	{
		name: "QoS 2 and kills", qos: 2, env: map[string]string{"BRIDGE_MQTT_QOS": "2"},
		trouble: func(s *stage) { s.killAtRandom(1) },
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
	{
		name:    "two installations with one client id",
		kinds:   kindsOfTwoSchemas,
		trouble: (*stage).contest,
		forgive: forgiveness{extra: true, because: "each has a ledger of its own: what one has committed and not acknowledged " +
			"is delivered to the other"},
	},
	{
		name: "storm beyond the byte budget", pad: 16 << 10, rate: 1500, env: map[string]string{"BRIDGE_MAX_INFLIGHT_BYTES": "2MiB"},
		trouble: func(s *stage) {
			for s.loading() {
				s.dbLink.toxic("latency", downstream, map[string]any{"latency": 100 + s.rng.IntN(400)})
				s.pause(500*time.Millisecond, 2*time.Second)
				s.dbLink.mend()
				s.pause(0, 500*time.Millisecond)
			}
		},
	},
	{
		// No clock of a machine is touched: the stamps that leases and ledger keep are moved, which is
		// what a jump of the database's clock leaves behind.
		name: "clock of the database jumps", replicas: 2, env: map[string]string{"BRIDGE_MQTT_SESSIONS": "2"}, calm: true,
		trouble: func(s *stage) {
			jumps := 0
			for ; s.loading(); jumps++ {
				jump := pick(s, []string{"1 hour", "-1 hour", "10 seconds", "-10 seconds"})
				s.execute("update bridge.replicas set heartbeat_at = heartbeat_at + interval '"+jump+"'",
					"update bridge.sessions set acquired_at = acquired_at + interval '"+jump+"'",
					"update bridge.deliveries set committed_at = committed_at + interval '"+jump+"'")
				s.pause(100*time.Millisecond, 2*time.Second)
			}
			s.factf("%d jumps", jumps)
		},
	},
}

func onlyTwins() []*kind { return []*kind{twins()} }

// killAtRandom kills the only bridge at any time, also before it is ready, until the load is over,
// and at least so many times.
func (s *stage) killAtRandom(least int) {
	s.t.Helper()
	kills := 0
	for ; s.loading() || kills < least; kills++ {
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

// contest starts a second installation, which has its own tables in the same database and hence
// leases that know nothing of the first's, and uses the same client id.
func (s *stage) contest() {
	s.t.Helper()
	s.pause(time.Second, 2*time.Second)
	before, start := s.connections(), time.Now()
	second := s.launch(map[string]string{"BRIDGE_SCHEMA": "second"})
	s.until("/health names the client id as the trouble", func() bool {
		for _, bridge := range s.bridges {
			if _, body, err := bridge.Get(s.ctx, "/health"); err == nil && strings.Contains(string(body), "uses client id bridge-0") {
				return true
			}
		}
		return false
	})
	told := time.Since(start)
	s.within(time.Until(start.Add(time.Minute)), func() bool { return false })
	n := s.connections() - before
	if n > 30 {
		s.t.Errorf("%d connections in a minute", n)
	}
	s.factf("%d connections in a minute, /health told after %.1f s", n, told.Seconds())
	s.terminate(second)
}

// kindsOfTwoSchemas looks for dead letters in the schema of either installation.
func kindsOfTwoSchemas() []*kind {
	kinds := allKinds()
	poison := kinds[len(kinds)-1]
	poison.count = strings.ReplaceAll(poison.count, "from bridge.dead_letters", "from (select * from bridge.dead_letters union all select * from second.dead_letters) as letters")
	return kinds
}

// connections is how often the broker has let a session in.
func (s *stage) connections() int {
	return len(connected.FindAllString(s.broker.Logs(s.ctx), -1))
}

// What the broker logs of the sessions, whose client ids end in a number; the bridge may have other
// connections.
var (
	connected = regexp.MustCompile(`New client connected from .* as bridge-\d+ \(`)
	lost      = regexp.MustCompile(`Client bridge-\d+ (closed its connection|disconnected|has exceeded timeout)`)
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
