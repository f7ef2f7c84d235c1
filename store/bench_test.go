package store

import (
	"context"
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/mqttpg/bridge/mapping"
)

// BenchmarkWriter commits batches of new rows into a table with the usual key; an operation is a
// message, mapping excluded.
func BenchmarkWriter(b *testing.B) {
	for _, size := range []int{100, 1000, 5000} {
		b.Run(strconv.Itoa(size), func(b *testing.B) {
			ctx := context.Background()
			pool, err := openPool(serverURL, 2)
			if err != nil {
				b.Fatal(err)
			}
			defer pool.Close()
			config := telemetry
			config.Table, config.Payload = fmt.Sprintf("bench_%d", time.Now().UnixNano()), "drop"
			routes, err := mapping.Compile([]mapping.RouteConfig{config})
			if err != nil {
				b.Fatal(err)
			}
			cfg := Config{MaxMessages: size, MaxBytes: 1 << 30}
			tables := NewTables(pool, cfg, routes)
			if err := tables.Ensure(ctx); err != nil {
				b.Fatal(err)
			}
			defer func() { _, _ = pool.Exec(ctx, "drop table "+config.Table) }()
			w := NewWriter(pool, cfg, tables, NewCounters(routes.All()), nil, nil, func([]Entry) {})
			entries := make([]Entry, b.N)
			for i := range entries {
				m := &mapping.Message{Topic: fmt.Sprintf("devices/%d/telemetry", i%1000), Seed: uint64(i), ReceivedAt: time.Now().UTC().Truncate(time.Microsecond)}
				m.Payload = fmt.Appendf(nil, `{"ts":%d,"temperature":21.5,"status":"ok"}`, 1_800_000_000_000+i)
				entries[i] = Entry{Message: m, Outcomes: routes.Map(m, nil), Size: 300}
			}
			b.ReportAllocs()
			b.ResetTimer()
			for i := range entries {
				w.Enqueue(entries[i])
			}
			go func() { _ = w.Run(ctx) }()
			if err := w.Drain(ctx); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "rows/s")
		})
	}
}
