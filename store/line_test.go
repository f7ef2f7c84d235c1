package store

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/mqttpg/bridge/mapping"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap/zaptest"
)

// patience is how long a test waits for what must happen.
const patience = 60 * time.Second

// line is a writer with all that stands around it.
type line struct {
	t        *testing.T
	pool     *pgxpool.Pool
	routes   *mapping.Routes
	tables   *Tables
	counters *Counters
	metrics  *Metrics
	writer   *Writer
	next     uint16

	mu      sync.Mutex
	settled []uint16 // packet ids in the order of settlement
	batches []int    // and the sizes of the batches they came in
}

// impatient is a configuration that fails, retries and parks within moments.
func impatient(t *testing.T) Config {
	return Config{
		ParkAfter:      300 * time.Millisecond,
		Log:            zaptest.NewLogger(t),
		attemptTimeout: 20 * time.Second,
		lockTimeout:    300 * time.Millisecond,
		lineLock:       300 * time.Millisecond,
		shortLock:      100 * time.Millisecond,
		retryMin:       5 * time.Millisecond,
		retryMax:       50 * time.Millisecond,
		maintainSoon:   200 * time.Millisecond,
		mendEvery:      200 * time.Millisecond,
	}
}

func compile(t *testing.T, configs ...mapping.RouteConfig) *mapping.Routes {
	t.Helper()
	routes, err := mapping.Compile(configs)
	if err != nil {
		t.Fatal(err)
	}
	return routes
}

func newLine(t *testing.T, pool *pgxpool.Pool, cfg Config, fence *Lease, configs ...mapping.RouteConfig) *line {
	t.Helper()
	l := &line{t: t, pool: pool, routes: compile(t, configs...)}
	l.tables = NewTables(pool, cfg, l.routes)
	l.counters = NewCounters(l.routes.All())
	l.metrics = NewMetrics(prometheus.NewRegistry())
	l.renew(cfg, fence)
	return l
}

// renew replaces the writer, as a new lease does.
func (l *line) renew(cfg Config, fence *Lease) {
	l.writer = NewWriter(l.pool, cfg, l.tables, l.counters, l.metrics, fence, func(entries []Entry) {
		l.mu.Lock()
		defer l.mu.Unlock()
		for i := range entries {
			l.settled = append(l.settled, entries[i].PacketID)
		}
		l.batches = append(l.batches, len(entries))
	})
}

// send maps and enqueues one message.
func (l *line) send(topic, payload string) {
	l.next++
	m := &mapping.Message{
		Topic: topic, Payload: []byte(payload), QoS: 1, Seed: uint64(l.next),
		ReceivedAt: time.Now().UTC().Truncate(time.Microsecond),
	}
	l.sendMessage(m)
}

func (l *line) sendMessage(m *mapping.Message) {
	if l.next == 0 {
		l.next++
	}
	l.writer.Enqueue(Entry{
		Message: m, Outcomes: l.routes.Map(m, nil), Size: len(m.Topic) + len(m.Payload) + 200,
		PacketID: l.next, Connection: 1,
	})
}

// run starts the writer; the returned func waits for its end.
func (l *line) run(ctx context.Context) (wait func() error) {
	ended := make(chan error, 1)
	go func() { ended <- l.writer.Run(ctx) }()
	return func() error {
		l.t.Helper()
		select {
		case err := <-ended:
			return err
		case <-time.After(patience):
			l.t.Fatal("writer did not end")
			return nil
		}
	}
}

// maintain keeps the tables until the test ends, as the service does.
func (l *line) maintain() {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { l.tables.Maintain(ctx); close(ended) }()
	l.t.Cleanup(func() { cancel(); <-ended })
}

// flush runs the writer until everything is settled.
func (l *line) flush() {
	l.t.Helper()
	wait := l.run(context.Background())
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := l.writer.Drain(ctx); err != nil {
		l.t.Fatalf("drain: %v", err)
	}
	if err := wait(); err != nil {
		l.t.Fatalf("run: %v", err)
	}
}

func (l *line) order() []uint16 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.settled)
}

// counts returns the counters of a route and checks the conservation law of all.
func (l *line) counts(route string) RouteCounts {
	l.t.Helper()
	var found *RouteCounts
	for _, c := range l.counters.Snapshot() {
		sum := c.Written + c.Duplicate + c.InFlight
		for _, n := range c.DeadLettered {
			sum += n
		}
		for _, n := range c.Skipped {
			sum += n
		}
		if sum != c.Received {
			l.t.Errorf("route %s: received %d, but accounted for %d: %+v", c.Route, c.Received, sum, c)
		}
		if c.Route == route {
			found = &c
		}
	}
	if found == nil {
		l.t.Fatalf("no counts of route %s", route)
	}
	return *found
}

// want checks received, written, duplicate and in flight of a route.
func (l *line) want(route string, received, written, duplicate, inFlight uint64) {
	l.t.Helper()
	c := l.counts(route)
	if c.Received != received || c.Written != written || c.Duplicate != duplicate || c.InFlight != inFlight {
		l.t.Errorf("route %s: received %d written %d duplicate %d in flight %d, want %d %d %d %d (%+v)",
			route, c.Received, c.Written, c.Duplicate, c.InFlight, received, written, duplicate, inFlight, c)
	}
}

func (l *line) wantInOrder(n int) {
	l.t.Helper()
	order := l.order()
	if len(order) != n || !slices.IsSorted(order) || len(slices.Compact(slices.Clone(order))) != n {
		l.t.Errorf("settled %v, want %d messages in the order of receipt", order, n)
	}
}

// eventually waits until condition holds.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatal("never happened: " + what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// drained starts the writer's Drain and returns its result in time.
func (l *line) drain() error {
	ctx, cancel := context.WithTimeoutCause(context.Background(), patience, errors.New("the test lost patience"))
	defer cancel()
	return l.writer.Drain(ctx)
}

var telemetry = mapping.RouteConfig{
	Name: "telemetry", Topic: "devices/{device_id}/telemetry", Time: "$.ts",
	Columns: "temperature:float8=$.temperature, status:text=$.status", Partition: "none",
}
