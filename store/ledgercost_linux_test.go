package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/mqttpg/bridge/integration/localpg"
	"github.com/mqttpg/bridge/mapping"
)

const (
	costMessages = 105_000 // in a round
	costRounds   = 11
)

// costBatches are the sizes that are compared: what gathers at some ten thousand messages a second, and a full one, as
// they are on a drain.
var costBatches = []int{1000, Config{}.withDefaults().MaxMessages}

// cost is what a round took.
type cost struct {
	commit  float64 // median milliseconds of a batch, its sorting out included
	wal     float64 // bytes per message
	process float64 // CPU seconds of this process per million messages: the writer's
	backend float64 // and of the PostgreSQL backend
}

// BenchmarkLedgerCost compares batches that carry fence and ledger with batches that carry neither: the
// same messages, into fresh tables, on a server of its own that syncs. Rounds alternate, so that what
// the machine does meanwhile befalls both. The result is a Markdown table; BENCH_DOCS names a document
// whose section "ledger" it becomes. One operation is the whole comparison.
func BenchmarkLedgerCost(b *testing.B) {
	ctx := context.Background()
	server, err := localpg.Start(ctx, localpg.Config{Settings: map[string]string{"shared_buffers": "128MB", "max_wal_size": "4GB", "autovacuum": "off"}})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = server.Stop() }()
	serverBefore := serverURL
	serverURL = server.URL("postgres")
	defer func() { serverURL = serverBefore }()
	if err := makeTemplate(ctx); err != nil {
		b.Fatal(err)
	}
	pool, err := openPool(databaseURL(template), 1) // one backend does all the work
	if err != nil {
		b.Fatal(err)
	}
	defer pool.Close()

	keyed := telemetry
	keyed.Payload = "drop"
	plain := keyed
	plain.Time, plain.Key = "", "delivery"
	var out strings.Builder
	fmt.Fprintf(&out, "Messages of 143 bytes JSON, %d a round, medians of %d alternating rounds with the lowest and\n"+
		"highest in parentheses; PostgreSQL with fsync on the same machine, %d CPUs. `make bench-ledger` writes this table.\n"+
		"The larger batches are full ones, as on a drain: they are what the targets speak of, of each figure the kind of route where it is more.\n"+
		"The bridge's CPU time is that of its writer alone, without reading and mapping: what that is beside a whole drain stands among the targets.\n"+
		"Batch times whose ranges overlap say nothing: other work on the machine decides them.\n\n",
		costMessages, costRounds, runtime.NumCPU())
	out.WriteString("| messages in a batch | route | ledger and fence | ms per batch | WAL bytes per message | writer CPU s per million | PostgreSQL CPU s per million |\n|---|---|---|---|---|---|---|\n")
	for i := range b.N * len(costBatches) {
		size := costBatches[i%len(costBatches)]
		for _, route := range []struct {
			name   string
			config mapping.RouteConfig
		}{{"keyed", keyed}, {"keyless", plain}} {
			var without, with []cost
			for round := range costRounds + 1 {
				for _, ledger := range []bool{round%2 == 0, round%2 != 0} {
					c, err := costOf(ctx, pool, route.config, size, ledger, round)
					if err != nil {
						b.Fatal(err)
					}
					switch {
					case round == 0: // warming up
					case ledger:
						with = append(with, c)
					default:
						without = append(without, c)
					}
				}
			}
			report(&out, b, fmt.Sprintf("%d | %s", size, route.name), without, with)
		}
	}
	fmt.Println(out.String())
	if path := os.Getenv("BENCH_DOCS"); path != "" {
		if err := writeSection(path, "ledger", "## What the delivery ledger costs\n\n"+out.String()); err != nil {
			b.Fatal(err)
		}
	}
}

// costOf writes one round of batches.
func costOf(ctx context.Context, pool *pgxpool.Pool, config mapping.RouteConfig, size int, withLedger bool, round int) (c cost, err error) {
	config.Table = fmt.Sprintf("cost_%d", time.Now().UnixNano())
	routes, err := mapping.Compile([]mapping.RouteConfig{config})
	if err != nil {
		return c, err
	}
	cfg := Config{MaxMessages: size, MaxBytes: 1 << 30}
	tables := NewTables(pool, cfg, routes)
	if err := tables.Ensure(ctx); err != nil {
		return c, err
	}
	defer func() {
		_, dropErr := pool.Exec(ctx, "drop table "+config.Table)
		err = errors.Join(err, dropErr)
	}()
	var lease *Lease
	if withLedger {
		lease = &Lease{ClientID: "s-0", Epoch: int64(round) + 1, ShareName: "s"}
		if _, err := pool.Exec(ctx, `insert into bridge.sessions (share_name, index, client_id, owner, epoch) values ('s', 0, 's-0', 'me', $1)
			on conflict (share_name, index) do update set epoch = $1`, lease.Epoch); err != nil {
			return c, err
		}
	}
	w := NewWriter(pool, cfg, tables, NewCounters(routes.All()), nil, lease, func([]Entry) {})
	if withLedger {
		w.ledger = newLedger()
		if err := w.ledger.load(ctx, pool, "bridge", lease); err != nil {
			return c, err
		}
	}
	batches := make([][]Entry, costMessages/size)
	for i := range batches {
		for j := range size {
			n := i*size + j
			m := &mapping.Message{Topic: fmt.Sprintf("devices/%d/telemetry", n%1000), QoS: 1, Seed: uint64(n), ReceivedAt: time.Now().UTC().Truncate(time.Microsecond)}
			m.Payload = fmt.Appendf(nil, `{"ts":%d,"temperature":21.5,"status":"ok","humidity":48.25,"battery":3.71,"firmware":"4.12.0","rssi":-67,"uptime":%d,"x":"x"}`, 1_800_000_000_000+n, 100_000_000+n)
			batches[i] = append(batches[i], Entry{Message: m, Outcomes: routes.Map(m, nil), Size: 300, PacketID: uint16(n%maxPacketID + 1), Attempt: 1})
		}
	}
	var backend int
	if _, err := pool.Exec(ctx, "checkpoint"); err != nil {
		return c, err
	}
	var from, wal int64
	const position = "select pg_backend_pid(), pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::int8"
	if err := pool.QueryRow(ctx, position).Scan(&backend, &from); err != nil {
		return c, err
	}
	runtime.GC()
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // it would look through all messages of the round, which no bridge holds
	process, server, took := processCPU(), backendCPU(backend), make([]time.Duration, 0, len(batches))
	var last *batch
	for _, entries := range batches {
		began := time.Now()
		last = newBatch(entries, w.ledger, last)
		o, err := w.attempt(ctx, last)
		if err != nil {
			return c, err
		}
		took = append(took, time.Since(began))
		if t := o.tallies.of(config.Name); t.written != uint64(size) {
			return c, fmt.Errorf("%d of %d messages were written: %+v, %d dead letters", t.written, size, t, len(o.letters))
		}
		if w.ledger != nil {
			w.ledger.confirmed = w.ledger.next - 1
		}
	}
	process, server = processCPU()-process, backendCPU(backend)-server
	if err := pool.QueryRow(ctx, position).Scan(&backend, &wal); err != nil {
		return c, err
	}
	slices.Sort(took)
	messages := float64(size * len(batches))
	return cost{
		commit: took[len(took)/2].Seconds() * 1e3, wal: float64(wal-from) / messages,
		process: process.Seconds() * 1e6 / messages, backend: server.Seconds() * 1e6 / messages,
	}, nil
}

func processCPU() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// backendCPU is the time that a process was on a CPU: finer than the ticks of /proc/<pid>/stat.
func backendCPU(pid int) time.Duration {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/schedstat", pid))
	if err != nil {
		panic(err)
	}
	n, err := strconv.ParseInt(strings.Fields(string(text))[0], 10, 64)
	if err != nil {
		panic(err)
	}
	return time.Duration(n)
}

// report adds three lines to the table: without, with, and the difference of the medians.
func report(out *strings.Builder, b *testing.B, route string, without, with []cost) {
	columns := []struct {
		unit   string
		of     func(cost) float64
		format string
	}{
		{"commit-ms", func(c cost) float64 { return c.commit }, "%.2f"},
		{"WAL-B/msg", func(c cost) float64 { return c.wal }, "%.1f"},
		{"CPU-s/M", func(c cost) float64 { return c.process }, "%.2f"},
		{"PG-CPU-s/M", func(c cost) float64 { return c.backend }, "%.2f"},
	}
	lines := []string{"without", "with", "**difference**"}
	for i := range lines {
		lines[i] = "| " + route + " | " + lines[i]
	}
	for _, column := range columns {
		var medians [2]float64
		for i, costs := range [][]cost{without, with} {
			values := make([]float64, len(costs))
			for j := range costs {
				values[j] = column.of(costs[j])
			}
			slices.Sort(values)
			medians[i] = values[len(values)/2]
			lines[i] += fmt.Sprintf(" | "+column.format+" ("+column.format+" to "+column.format+")", medians[i], values[0], values[len(values)-1])
		}
		lines[2] += fmt.Sprintf(" | %+.1f %%", 100*(medians[1]/medians[0]-1))
		b.ReportMetric(100*(medians[1]/medians[0]-1), strings.ReplaceAll(route, " | ", "-")+"-"+column.unit+"-%")
	}
	out.WriteString(strings.Join(lines, " |\n") + " |\n")
}

// writeSection puts text between the marks <!-- name --> and <!-- /name --> of a document, or behind
// everything else when it has no such marks.
func writeSection(path, name, text string) error {
	document, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if len(document) == 0 {
		document = []byte("# Performance\n")
	}
	begin, end := []byte("<!-- "+name+" -->\n"), []byte("<!-- /"+name+" -->\n")
	section := slices.Concat(begin, []byte(strings.TrimRight(text, "\n")+"\n"), end)
	if before, rest, found := bytes.Cut(document, begin); found {
		_, after, found := bytes.Cut(rest, end)
		if !found {
			return fmt.Errorf("%s: section %s does not end", path, name)
		}
		document = slices.Concat(before, section, after)
	} else {
		document = slices.Concat(document, []byte("\n"), section)
	}
	return os.WriteFile(path, document, 0o644)
}
