package store

import (
	"context"
	"runtime"
	"sync/atomic"
	"testing"

	"github.com/mqttpg/bridge/mapping"
)

// TestSettledRowsAreLetGo: of a message that is settled nothing is kept, however long no other one comes on its route. A budget
// that counts it no more would be a lie.
func TestSettledRowsAreLetGo(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, spoil string
		payloads    []string
	}{
		{"copied", "", []string{reading(1, 1)}},
		{"inserted", "", []string{reading(1, 1), reading(1, 1)}},
		{"refused", `alter table telemetry add check (temperature < 0)`, []string{reading(1, 1)}},
		{"one of three refused", `alter table telemetry add check (temperature < 3)`, []string{reading(1, 1), reading(2, 2), reading(3, 3)}},
		{"parked", `alter table telemetry drop temperature; alter table telemetry add temperature bytea`, []string{reading(1, 1)}},
		{"rejected", "", []string{"{"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			_, pool := newDatabase(t)
			l := newLine(t, pool, impatient(t), nil, telemetry)
			if err := l.tables.Ensure(context.Background()); err != nil {
				t.Fatal(err)
			}
			if test.spoil != "" {
				execute(t, pool, test.spoil)
			}
			var kept atomic.Int64
			for i, payload := range test.payloads {
				m := &mapping.Message{Topic: "devices/a/telemetry", Payload: []byte(payload), QoS: 1, Seed: uint64(i)}
				outcomes := l.routes.Map(m, nil)
				kept.Add(1)
				runtime.AddCleanup(m, func(int) { kept.Add(-1) }, 0)
				for _, row := range outcomes[0].Rows {
					kept.Add(1)
					runtime.AddCleanup(&row.Fields[0], func(int) { kept.Add(-1) }, 0)
				}
				l.writer.Enqueue(Entry{Message: m, Outcomes: outcomes, PacketID: uint16(i + 1)})
			}
			wait := l.run(context.Background())
			eventually(t, "what was settled is let go", func() bool {
				runtime.GC()
				return len(l.order()) == len(test.payloads) && kept.Load() == 0
			})
			if err := l.drain(); err != nil {
				t.Error(err)
			}
			if err := wait(); err != nil {
				t.Error(err)
			}
		})
	}
}
