//go:build unix

package faults

import (
	"slices"
	"time"
)

// identicalScenarios publish nothing but equal readings without id or time: only the delivery ledger
// tells a redelivery from one more of them. They end when all are written, however long that takes.
var identicalScenarios = []*scenario{
	identical("200 000 identical", 200_000, 50),
	identical("70 000 identical", 70_000, 20),
}

// identical publishes as fast as the broker takes it, and kills the bridge at least so many times
// before everything is written. Small batches in a small window put many commits and acknowledgements
// into each life. Packet Identifiers come round more than once, and between twins only they and DUP differ.
func identical(name string, messages, kills int) *scenario {
	return &scenario{
		name: name, kinds: func() []*kind { return []*kind{twins()} },
		env:    map[string]string{"BRIDGE_BATCH_MAX_MESSAGES": "100", "BRIDGE_MQTT_RECEIVE_MAXIMUM": "200"},
		broker: []string{"autosave_interval 3600"}, // it lives, and to save such a queue each second takes all its time
		rate:   messages, limit: messages,
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
					// Not until it is ready: SUBACK stands behind all that the broker has queued.
					s.until("the bridge has its session", func() bool { return s.owned(bridge) > 0 })
				}
			}
			s.ready(bridge)
			if killed < kills {
				s.t.Errorf("%d kills, expected %d", killed, kills)
			}
			s.factf("%d kills", killed)
		},
		after: func(s *stage) {
			if k := s.load.kinds[0]; k.sent != messages || slices.Contains(k.acked, false) {
				s.t.Errorf("%d published and not all acknowledged, expected %d", k.sent, messages)
			}
		},
	}
}
