//go:build unix

package integration

import (
	"fmt"
	"testing"
	"time"

	"github.com/mqttpg/bridge/integration/provider"
)

// streamRoutes are two keyed routes, by event time and by key, and one that tells twins only by
// delivery.
var streamRoutes = map[string]string{
	"BRIDGE_ROUTES": "telemetry,orders,raw",

	"BRIDGE_ROUTE_TELEMETRY_TOPIC":   "stream/{device_id}/telemetry",
	"BRIDGE_ROUTE_TELEMETRY_TIME":    "$.ts",
	"BRIDGE_ROUTE_TELEMETRY_COLUMNS": "seq:int8=$.seq",

	"BRIDGE_ROUTE_ORDERS_TOPIC":   "stream/{device_id}/orders",
	"BRIDGE_ROUTE_ORDERS_KEY":     "$.id",
	"BRIDGE_ROUTE_ORDERS_COLUMNS": "id:int8=$.id",

	"BRIDGE_ROUTE_RAW_TOPIC":   "stream/{device_id}/raw",
	"BRIDGE_ROUTE_RAW_FORMAT":  "text",
	"BRIDGE_ROUTE_RAW_KEY":     "delivery",
	"BRIDGE_ROUTE_RAW_COLUMNS": "n:int8=payload",
}

// streamLoad is a stream of QoS 1 messages, a third to each route, with the rows they make.
type streamLoad struct {
	messages               []message
	telemetry, orders, raw rows
}

func newStreamLoad(n int) *streamLoad {
	w := &streamLoad{telemetry: rows{}, orders: rows{}, raw: rows{}}
	w.extend(time.Now().UTC().Truncate(time.Hour), 0, n)
	return w
}

// extend adds the messages from number first up to but without number end.
func (w *streamLoad) extend(base time.Time, first, end int) {
	for i := first; i < end; i++ {
		device := fmt.Sprintf("dev-%d", i%10)
		at := base.Add(time.Duration(i) * time.Millisecond)
		m := message{qos: 1}
		switch i % 3 {
		case 0:
			m.topic = "stream/" + device + "/telemetry"
			m.payload = fmt.Appendf(nil, `{"ts":%q,"seq":%d}`, at.Format(time.RFC3339Nano), i)
			w.telemetry.add(device, at, i)
		case 1:
			m.topic = "stream/" + device + "/orders"
			m.payload = fmt.Appendf(nil, `{"id":%d}`, i)
			w.orders.add(device, i)
		case 2:
			m.topic = "stream/" + device + "/raw"
			m.payload = fmt.Append(nil, i)
			w.raw.add(device, i)
		}
		w.messages = append(w.messages, m)
	}
}

// arrived says whether the keyed tables and the set of raw values hold as much as was sent.
func (w *streamLoad) arrived(t *testing.T, s *scene) (bool, string) {
	t.Helper()
	got := tableRows(t, s.database, `select
		(select count(*) from telemetry), (select count(*) from orders), (select count(distinct n) from raw)`)
	want := line(len(w.telemetry), len(w.orders), len(w.raw))
	state := "telemetry | orders | raw: "
	for row := range got {
		state += row
	}
	return got[want] == 1, state + ", want " + want
}

// waitFor waits until every message of the stream is in its table and the bridges have settled all
// they received.
func (w *streamLoad) waitFor(t *testing.T, s *scene, bridges ...*provider.Bridge) {
	t.Helper()
	eventually(t, "every message is in its table", func() (bool, string) { return w.arrived(t, s) })
	for _, bridge := range bridges {
		waitQuiet(t, bridge)
	}
}

// compare asks that the keyed tables hold every message exactly once. The unkeyed one holds every
// message; that it holds each once is asked unless the devices themselves repeat some.
func (w *streamLoad) compare(t *testing.T, s *scene, rawExactlyOnce bool) {
	t.Helper()
	sameRows(t, "telemetry", w.telemetry, tableRows(t, s.database, `select device_id, time, seq from telemetry`))
	sameRows(t, "orders", w.orders, tableRows(t, s.database, `select device_id, id from orders`))
	unique := "distinct"
	if rawExactlyOnce {
		unique = ""
	}
	sameRows(t, "raw", w.raw, tableRows(t, s.database, `select `+unique+` device_id, n from raw`))
}

// waitAndCompare is waitFor and compare, and asks that no message was taken for broken.
func (w *streamLoad) waitAndCompare(t *testing.T, s *scene, rawExactlyOnce bool, bridges ...*provider.Bridge) {
	t.Helper()
	w.waitFor(t, s, bridges...)
	w.compare(t, s, rawExactlyOnce)
	sameRows(t, "dead_letters", rows{}, tableRows(t, s.database, `select route, topic, reason, detail from bridge.dead_letters`))
}

// TestBrokerRestartMidStream stops the broker twice under load, once for longer than the devices'
// patience. Devices repeat what was not acknowledged, with the same content.
func TestBrokerRestartMidStream(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	bridge := s.start(t, streamRoutes)
	watchLaw(t, bridge)
	load := newStreamLoad(6000)
	devices := newPublisher(t, s.broker.URL(), "devices")
	stream := devices.startStream(t.Context(), t, load.messages, 1000)

	stream.waitSent(t, 1500)
	must(t, s.broker.Stop(t.Context()))
	must(t, s.broker.Start(t.Context()))
	stream.waitSent(t, 3500)
	must(t, s.broker.Stop(t.Context()))
	eventually(t, "/readyz names the broker", func() (bool, string) { return notReady(t, bridge, "broker") })
	must(t, s.broker.Start(t.Context()))
	stream.wait()

	load.waitAndCompare(t, s, false, bridge)
	waitReady(t, bridge)
	if reconnects := scrape(t, bridge).sum("bridge_mqtt_reconnects_total"); reconnects < 2 {
		t.Errorf("%v reconnects counted, the broker was away twice", reconnects)
	}
}

// TestDatabaseRestartMidStream stops the database under load, once in good order and once as a
// crash. Nothing was acknowledged meanwhile, so nothing is missing.
func TestDatabaseRestartMidStream(t *testing.T) {
	t.Parallel()
	s := newFragileScene(t)
	bridge := s.start(t, streamRoutes)
	watchLaw(t, bridge)
	load := newStreamLoad(6000)
	devices := newPublisher(t, s.broker.URL(), "devices")
	stream := devices.startStream(t.Context(), t, load.messages, 1000)

	stream.waitSent(t, 1500)
	must(t, s.server.Stop(t.Context()))
	stream.waitSent(t, 2500)
	must(t, s.server.Start(t.Context()))
	stream.waitSent(t, 3500)
	must(t, s.server.Kill(t.Context()))
	stream.waitSent(t, 4000)
	must(t, s.server.Start(t.Context()))
	stream.wait()

	load.waitAndCompare(t, s, true, bridge)
	waitReady(t, bridge)
	m := scrape(t, bridge)
	if reconnects := m.sum("bridge_mqtt_reconnects_total"); reconnects != 0 {
		t.Errorf("%v reconnects to the broker because of the database", reconnects)
	}
	if retries := m.sum("bridge_database_retries_total"); retries == 0 {
		t.Error("no retry counted, the database was away twice")
	}
}

// TestBridgeKilledMidStream kills the bridge with SIGKILL as long as the stream lasts, each time
// when it has written some of it.
func TestBridgeKilledMidStream(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	bridge := s.start(t, streamRoutes)
	load := newStreamLoad(6000)
	devices := newPublisher(t, s.broker.URL(), "devices")
	stream := devices.startStream(t.Context(), t, load.messages, 250)
	killMidStream(t, bridge, stream)
	load.waitAndCompare(t, s, true, bridge)
}

// killMidStream kills and restarts the bridge until the stream is over.
func killMidStream(t *testing.T, bridge *provider.Bridge, stream *stream) {
	t.Helper()
	kills := 0
	for {
		eventually(t, "the bridge is in mid-stream", func() (bool, string) {
			written := scrape(t, bridge).sum("bridge_messages_written_total")
			return written > 100 || stream.over(), fmt.Sprintf("%v messages written", written)
		})
		if stream.over() {
			break
		}
		must(t, bridge.Kill(t.Context()))
		kills++
		must(t, bridge.Start(t.Context()))
		waitReady(t, bridge)
	}
	if kills < 2 {
		t.Errorf("the bridge was killed only %d times in mid-stream", kills)
	}
}

// TestEqualReadingsThroughKills: every message has the same topic and the same bytes, without id and
// time. Nothing but the delivery ledger tells a redelivery from the next reading.
func TestEqualReadingsThroughKills(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	bridge := s.start(t, streamRoutes)
	const readings = 6000
	messages := make([]message, readings)
	for i := range messages {
		messages[i] = message{qos: 1, topic: "stream/dev/raw", payload: []byte("42")}
	}
	stream := newPublisher(t, s.broker.URL(), "device").startStream(t.Context(), t, messages, 250)
	killMidStream(t, bridge, stream)
	waitQuiet(t, bridge)
	eventually(t, "every reading is in its table", func() (bool, string) {
		return tableRows(t, s.database, `select count(*) >= 6000 from raw`)["t"] == 1, "still less"
	})
	waitQuiet(t, bridge)
	sameRows(t, "raw", rows{"6000": 1}, tableRows(t, s.database, `select count(*) from raw`))
}
