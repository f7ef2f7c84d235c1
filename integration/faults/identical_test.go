//go:build unix

package faults

import (
	"context"
	"slices"
	"time"

	"github.com/mqttpg/bridge/integration/provider"
)

// identicalScenarios publish nothing but equal readings without id or time: only the delivery ledger
// tells a redelivery from one more of them. They end when all are written, however long that takes.
var identicalScenarios = []*scenario{
	identical("200 000 identical", 200_000, 50),
	identical("70 000 identical", 70_000, 20),
	backlogged("a queue of 400 000 identical", 400_000, 8),
	// Not on the short list, which a build machine plays with containers: an engine's proxy holds acknowledgements.
	backlogged("a queue of 120 000 identical", 120_000, 2),
	qos2Backlog(),
	smallBacklog(),
	slowBacklog(),
}

// qos2Backlog has no more messages than there are packet identifiers: Mosquitto before 2.0.13 gives one to two messages
// at once, and takes PUBREC for the second to be for the first.
func qos2Backlog() *scenario {
	sc := backlogged("a queue of 60 000 identical, QoS 2", 60_000, 4)
	sc.qos, sc.env = 2, map[string]string{"BRIDGE_MQTT_QOS": "2"}
	return sc
}

// smallBacklog never has as many messages in flight as Receive Maximum allows.
func smallBacklog() *scenario {
	sc := backlogged("a queue of 200 000 identical, 1 MiB", 200_000, 4)
	sc.env = map[string]string{"BRIDGE_MAX_INFLIGHT_BYTES": "1MiB"}
	return sc
}

// slowBacklog is at a broker that works for 5 of 100 milliseconds, as one that others take the time of: it sends for longer than
// ten seconds before it reads an acknowledgement. Without a fault nothing may come again, and with one as little as else.
func slowBacklog() *scenario {
	sc := backlogged("a queue of 200 000 identical, slow broker", 200_000, 1)
	queue := sc.trouble
	sc.trouble = func(s *stage) {
		ctx, cancel := context.WithCancel(s.ctx)
		done := make(chan error, 1)
		go func() {
			for s.loading() { // queueing is none of its work
				time.Sleep(20 * time.Millisecond)
			}
			for ctx.Err() == nil {
				time.Sleep(5 * time.Millisecond)
				if err := s.broker.Pause(s.ctx); err != nil {
					done <- err
					return
				}
				time.Sleep(95 * time.Millisecond)
				if err := s.broker.Resume(s.ctx); err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
		defer func() {
			cancel()
			must(s.t, <-done)
		}()
		queue(s)
	}
	return sc
}

// identical publishes as fast as the broker takes it, and kills the bridge at least so many times
// before everything is written. Small batches in a small window put many commits and acknowledgements
// into each life. Packet Identifiers come round more than once, and between twins only they and DUP differ.
func identical(name string, messages, kills int) *scenario {
	return &scenario{
		name: name, kinds: func() []*kind { return []*kind{twins()} },
		env:    map[string]string{"BRIDGE_BATCH_MAX_MESSAGES": "100", "BRIDGE_MQTT_RECEIVE_MAXIMUM": "200"},
		broker: unsaved, direct: true, rate: messages, limit: messages,
		trouble: func(s *stage) {
			bridge, killed := s.bridges[0], 0
			for ; killed < 4*kills && s.number("select count(*)::int from twins") < messages; killed++ {
				// At random, but on a fast machine before this life has written more than its part.
				life := 50*time.Millisecond + time.Duration(s.rng.IntN(1450))*time.Millisecond
				s.within(life, func() bool { return s.metric(bridge, "bridge_messages_written_total") > float64(messages/kills/4) })
				s.pause(0, 20*time.Millisecond)
				s.kill(bridge)
				s.expire()
				must(s.t, bridge.Start(s.ctx))
				if s.rng.IntN(4) > 0 { // otherwise its time runs at once
					s.awaitSession(bridge)
				}
			}
			s.awaitEnd(bridge)
			if killed < kills {
				s.t.Errorf("%d kills, expected %d", killed, kills)
			}
			s.factf("%d kills", killed)
		},
		after: allPublished(messages),
	}
}

// unsaved is for a broker that lives: to save such a queue each second takes all its time.
var unsaved = []string{"autosave_interval 3600"}

func allPublished(messages int) func(s *stage) {
	return func(s *stage) {
		if k := s.load.kinds[0]; k.sent != messages || slices.Contains(k.acked, false) {
			s.t.Errorf("%d published and not all acknowledged, expected %d", k.sent, messages)
		}
	}
}

// backlogged has a queue build up while the bridge is away, and kills it so many times while it works that off.
// Mosquitto before 2.0.13 then sends all of it at once, and reads hardly an acknowledgement before it has: more
// than half of the packet identifiers can be on their way again.
func backlogged(name string, messages, kills int) *scenario {
	return &scenario{
		name: name, kinds: func() []*kind { return []*kind{twins()} },
		broker: unsaved, direct: true, rate: messages, limit: messages,
		trouble: func(s *stage) {
			bridge := s.bridges[0]
			s.terminate(bridge)
			for s.loading() {
				time.Sleep(20 * time.Millisecond)
			}
			for range kills {
				must(s.t, bridge.Start(s.ctx))
				s.awaitSession(bridge)
				share := float64(messages/(kills+1)) * (0.25 + 1.5*s.rng.Float64())
				s.until("the bridge has written its share", func() bool {
					return s.metric(bridge, "bridge_messages_written_total") >= share || s.number("select count(*)::int from twins") >= messages
				})
				s.kill(bridge)
				s.expire()
			}
			must(s.t, bridge.Start(s.ctx))
			s.awaitEnd(bridge)
			s.factf("%d kills", kills)
		},
		after: allPublished(messages),
	}
}

// awaitSession waits until a bridge has the session. It may not be ready: SUBACK stands behind all that the broker
// has to send again.
func (s *stage) awaitSession(bridge *provider.Bridge) {
	s.t.Helper()
	s.until("the bridge has its session", func() bool { return s.owned(bridge) > 0 })
}

// awaitEnd waits until a bridge has been sent all that comes again. One without a session is ready as well.
func (s *stage) awaitEnd(bridge *provider.Bridge) {
	s.t.Helper()
	s.awaitSession(bridge)
	s.ready(bridge)
}
