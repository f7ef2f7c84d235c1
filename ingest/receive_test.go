package ingest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"testing"
	"time"

	"github.com/mqttpg/bridge/mapping"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
)

// line is the receiving half of the bridge without its ends: a broker whose packets are in memory, and
// a writer that settles at once whenever a batch is full.
type line struct {
	routes  *mapping.Routes
	session *Session
	budget  *Budget
	batch   []held
	acks    []Ack
	rows    int
}

type held struct {
	arena *mapping.Arena
	ack   Ack
	size  int
}

func newLine(t testing.TB) *line {
	t.Helper()
	routes, err := mapping.Compile([]mapping.RouteConfig{{
		Name: "telemetry", Topic: "devices/{device_id}/telemetry", Table: "telemetry", Payload: "drop", Time: "$.ts",
		Columns: "msg:uuid=$.id,temperature:float8=$.temperature,humidity:float8=$.humidity,battery:float8=$.battery,status:text=$.status",
	}})
	if err != nil {
		t.Fatal(err)
	}
	l := &line{routes: routes, budget: NewBudget(64 << 20)}
	r := newIdleRig(t, func(cfg *Config) {
		cfg.Budget, cfg.MaxInFlight, cfg.Deliver = l.budget, 3000, l.deliver
		cfg.Log, cfg.Metrics = zap.NewNop(), NewMetrics(prometheus.NewRegistry())
	}, "mqtt://test")
	l.session = r.session
	return l
}

func (l *line) deliver(_ context.Context, d *Delivery) {
	for _, o := range l.routes.MapCopy(d.Message, d.SubscriptionIDs, d.Arena) {
		l.rows += len(o.Rows)
	}
	l.batch = append(l.batch, held{d.Arena, d.Ack(), d.Size})
	if len(l.batch) < 1000 {
		return
	}
	l.acks = l.acks[:0]
	for _, h := range l.batch {
		l.acks = append(l.acks, h.ack)
		h.arena.Release(1)
		l.budget.Release(int64(h.size))
	}
	_ = l.session.Acknowledge(l.acks)
	l.batch = l.batch[:0]
}

// sink takes everything that is written, and has been given what can be read.
type sink struct {
	net.Conn
	io.Reader
}

func (s sink) Read(p []byte) (int, error)       { return s.Reader.Read(p) }
func (sink) Write(p []byte) (int, error)        { return len(p), nil }
func (sink) SetWriteDeadline(_ time.Time) error { return nil }
func (sink) Close() error                       { return nil }

// telemetry is n publications of a thousand devices with QoS 1.
func telemetry(n int) []byte {
	var b []byte
	for i := range n {
		topic := fmt.Sprintf("devices/d%d/telemetry", i%1000)
		body := binary.BigEndian.AppendUint16(nil, uint16(len(topic)))
		body = append(body, topic...)
		body = binary.BigEndian.AppendUint16(body, uint16(i%65535+1))
		body = append(body, 0)
		body = fmt.Appendf(body, `{"id":"%08x-0000-4000-8000-%012x","ts":"2026-11-23T00:00:%02d.%03dZ","temperature":%.2f,"humidity":40.5,"battery":3.7,"status":"ok"}`, i, i, i/1000%60, i%1000, 20+float64(i%1000)/100)
		b = append(append(b, fixedHeader(0x32, len(body))...), body...)
	}
	return b
}

// run reads everything that the broker says, and returns how many allocations that took.
func (l *line) run(t testing.TB, said io.Reader) uint64 {
	c := newConn(l.session, sink{Reader: said})
	l.session.mu.Lock()
	l.session.conn = c
	l.session.mu.Unlock()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	p := make([]byte, 16)
	for {
		if _, err := c.Read(p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	runtime.ReadMemStats(&after)
	return after.Mallocs - before.Mallocs
}

// BenchmarkReceiveAndMap is what a message costs from the socket's buffer to its row in memory, and its
// acknowledgement; per operation one message.
func BenchmarkReceiveAndMap(b *testing.B) {
	said := telemetry(10_000)
	l := newLine(b)
	b.SetBytes(int64(len(said) / 10_000))
	b.ReportAllocs()
	said = append(unhex(b, connack), said...)
	b.ResetTimer()
	for done := 0; done < b.N; done += 10_000 {
		l.run(b, bytes.NewReader(said))
	}
}
