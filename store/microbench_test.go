package store

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/mqttpg/bridge/mapping"
	"github.com/prometheus/client_golang/prometheus"
)

// benchEntries are so many messages of a thousand devices, mapped, as the writer takes them.
func benchEntries(b *testing.B, n int) (*mapping.Route, []Entry) {
	b.Helper()
	config := telemetry
	config.Payload = "drop"
	config.Columns = "msg:uuid=$.id, temperature:float8=$.temperature, humidity:float8=$.humidity, battery:float8=$.battery, status:text=$.status"
	routes, err := mapping.Compile([]mapping.RouteConfig{config})
	if err != nil {
		b.Fatal(err)
	}
	entries := make([]Entry, n)
	for i := range entries {
		m := &mapping.Message{Topic: fmt.Sprintf("devices/d%d/telemetry", i*7919%1000), QoS: 1, Seed: uint64(i), ReceivedAt: time.Unix(1_800_000_000, 0).UTC()}
		m.Payload = fmt.Appendf(nil, `{"id":"%08x-0000-4000-8000-000000000000","ts":"2026-11-23T00:00:%02d.%03dZ","temperature":21.53,"humidity":40.10,"battery":3.7,"status":"ok"}`, i, i/1000%60, i%1000)
		entries[i] = Entry{Message: m, Outcomes: routes.Map(m, nil), Size: 300, PacketID: uint16(i%65535 + 1)}
	}
	return routes.All()[0], entries
}

// BenchmarkEncodeBatch sorts a batch of a thousand messages out and makes what is sent of it; an
// operation is a batch.
func BenchmarkEncodeBatch(b *testing.B) {
	route, entries := benchEntries(b, 1000)
	for _, kind := range []string{"copy", "insert"} {
		b.Run(kind, func(b *testing.B) {
			p := newPlan(route, &catalogTable{uniqueKeys: [][]string{slices.Sorted(slices.Values(route.Table.KeyColumns))}, copied: kind == "copy"})
			var in insertion
			var wire []byte
			var batch *batch
			b.ReportAllocs()
			for b.Loop() {
				batch = newBatch(entries, nil, batch)
				in.prepare(p, &batch.groups[0])
				arrange([]*insertion{&in})
				for rows := in.parts[0].copied; len(rows) > 0; {
					rows, wire = appendCopyData(wire[:0], rows, in.parts[0].columns)
				}
			}
			if len(in.parts) != 1 || len(in.parts[0].rows) != len(entries) || in.copying != (kind == "copy") {
				b.Fatalf("%d statements, copying %t", len(in.parts), in.copying)
			}
		})
	}
}

// BenchmarkRoutes takes messages all the way from the mapping to the counting but for the wire to the server; an
// operation is a message. Many routes write into one table, and a batch has some messages of each.
func BenchmarkRoutes(b *testing.B) {
	const size, devices = 2500, 1000
	for _, n := range []int{1, 200} {
		b.Run(fmt.Sprintf("routes=%d", n), func(b *testing.B) {
			var configs []mapping.RouteConfig
			for i := range n {
				configs = append(configs, mapping.RouteConfig{
					Name: fmt.Sprintf("r%d", i), Topic: fmt.Sprintf("s%03d/{device_id}/telemetry", i), Table: "telemetry", Time: "$.ts", Payload: "drop",
					Columns: "id:uuid=$.id, temperature:float8=$.temperature, humidity:float8=$.humidity, battery:float8=$.battery, status:text=$.status",
				})
			}
			routes, err := mapping.Compile(configs)
			if err != nil {
				b.Fatal(err)
			}
			w := NewWriter(nil, Config{MaxMessages: size}, NewTables(nil, Config{}, routes), NewCounters(routes.All()), NewMetrics(prometheus.NewRegistry()), nil, func(entries []Entry) {
				for i := range entries {
					entries[i].Arena.Release(1)
				}
			})
			for _, route := range routes.All() {
				w.tables.states[route].plan = newPlan(route, &catalogTable{uniqueKeys: [][]string{slices.Sorted(slices.Values(route.Table.KeyColumns))}, copied: true})
			}
			var messages []*mapping.Message
			for i := range 4 * devices {
				d := i * 7919 % devices
				messages = append(messages, &mapping.Message{
					Topic: fmt.Sprintf("s%03d/d%07d/telemetry", d%n, d), QoS: 1, Seed: uint64(i), ReceivedAt: time.UnixMicro(int64(1767323045678000 + i)),
					Payload: fmt.Appendf(nil, `{"id":"0197f3a4-5b6c-7d8e-9f00-%012d","ts":"2026-01-02T03:04:%02d.%03dZ","temperature":21.5,"humidity":48.2,"battery":3.71,"status":"ok"}`, i, i/1000%60, i%1000),
				})
			}
			var arena *mapping.Arena
			var last *batch
			var taken []Entry
			var wire []byte
			ready := func() {}
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				m := messages[i%len(messages)]
				var a *mapping.Arena
				arena, a = arena.Next(len(m.Payload))
				a.Hold()
				w.Enqueue(Entry{Message: m, Outcomes: routes.MapCopy(m, nil, a), Arena: a, Size: 500})
				if (i+1)%size != 0 {
					continue
				}
				entries, _ := w.take(taken, false)
				last = newBatch(entries, nil, last)
				taken = entries
				o := &outcome{tallies: make(tallies, len(last.groups))}
				live, _, _, err := w.prepare(b.Context(), last, o, ready)
				if err != nil {
					b.Fatal(err)
				}
				arrange(live)
				var copied []*plan
				for _, in := range live {
					if in.leader != nil {
						continue
					}
					copied = append(copied, in.plan)
					for rows := in.parts[0].copied; len(rows) > 0; {
						rows, wire = appendCopyData(wire[:0], rows, in.parts[0].columns)
					}
					in.parts[0].affected = size
				}
				for _, in := range live {
					in.share()
				}
				if unaltered(copied, nil); len(copied) != 1 {
					b.Fatalf("%d statements, want one for all routes", len(copied))
				}
				for _, in := range live {
					w.count(o, in, len(in.units))
				}
				w.note(last, live, o)
				for _, in := range live {
					in.learn(o.tallies.of(in.plan.route.Name).duplicate > 0)
				}
				w.recount(b.Context(), nil, last, live, o)
				w.letGo(last)
				w.settled(&pending{batch: last, outcome: o, began: time.Now(), ended: time.Now()})
			}
		})
	}
}

// BenchmarkLedgerLookup looks deliveries up in a full ledger and enters them; an operation is a
// delivery. A batch, and with it a record, ends after a thousand.
func BenchmarkLedgerLookup(b *testing.B) {
	_, entries := benchEntries(b, 65535)
	for _, kind := range []string{"new", "redelivered"} {
		b.Run(kind, func(b *testing.B) {
			l := newLedger()
			var r record
			for i := range entries {
				l.redelivery(&entries[i], l.hash(entries[i].Message, 0), &r)
			}
			redeliveries := entries[len(entries)-1000:]
			known, i := 0, 0
			b.ReportAllocs()
			for b.Loop() {
				e := entries[i%len(entries)]
				if kind == "redelivered" {
					e = redeliveries[i%len(redeliveries)]
					e.Dup = true
				}
				if i%1000 == 0 {
					r.packetIDs, r.hashes = r.packetIDs[:0], r.hashes[:0]
				}
				if l.redelivery(&e, l.hash(e.Message, 0), &r) {
					known++
				}
				i++
			}
			if (known == i) != (kind == "redelivered") || kind == "new" && known > 0 {
				b.Fatalf("%d of %d were known", known, i)
			}
		})
	}
}
