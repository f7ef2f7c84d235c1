//go:build unix

package integration

import (
	"bytes"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"
)

// mainJobRoutes are the routes of the main job. Every message below devices/ belongs to two of
// them; telemetry, batches, orders and events are keyed, the others are not.
var mainJobRoutes = map[string]string{
	"BRIDGE_ROUTES": "telemetry,archive,readings,blobs,batches,orders,events",

	"BRIDGE_ROUTE_TELEMETRY_TOPIC": "devices/{device_id}/telemetry",
	"BRIDGE_ROUTE_TELEMETRY_TIME":  "$.ts",
	"BRIDGE_ROUTE_TELEMETRY_COLUMNS": "seq:int8=$.seq, temperature:float8=$.temperature, status:text=$.status," +
		" total:int8=$.total, exact:numeric=$.exact",

	"BRIDGE_ROUTE_ARCHIVE_TOPIC":  "devices/{device_id}/{rest...}",
	"BRIDGE_ROUTE_ARCHIVE_FORMAT": "raw",

	"BRIDGE_ROUTE_READINGS_TOPIC":   "readings/+/{metric}",
	"BRIDGE_ROUTE_READINGS_FORMAT":  "text",
	"BRIDGE_ROUTE_READINGS_COLUMNS": "metric:text={metric}, value:float8=payload",

	"BRIDGE_ROUTE_BLOBS_TOPIC":    "blobs/#",
	"BRIDGE_ROUTE_BLOBS_FORMAT":   "raw",
	"BRIDGE_ROUTE_BLOBS_ON_EMPTY": "store",

	"BRIDGE_ROUTE_BATCHES_TOPIC":   "batches/{device_id}",
	"BRIDGE_ROUTE_BATCHES_EACH":    "$.readings",
	"BRIDGE_ROUTE_BATCHES_TIME":    "@.t",
	"BRIDGE_ROUTE_BATCHES_COLUMNS": "n:int8=@.n, site:text=$.site",

	"BRIDGE_ROUTE_ORDERS_TOPIC":   "orders/{device_id}",
	"BRIDGE_ROUTE_ORDERS_KEY":     "$.id",
	"BRIDGE_ROUTE_ORDERS_COLUMNS": "id:text=$.id",

	"BRIDGE_ROUTE_EVENTS_TOPIC":   "events/{device_id}",
	"BRIDGE_ROUTE_EVENTS_KEY":     "user.id",
	"BRIDGE_ROUTE_EVENTS_COLUMNS": "id:text=user.id, kind:text=$.kind",
}

// workload is what the devices publish and what the tables must hold afterwards.
type workload struct {
	messages []message
	tables   map[string]rows
	received map[string]int // messages per route
	skipped  map[string]int
	copies   map[string]int // retransmissions per keyed route
}

func (w *workload) publish(m message) { w.messages = append(w.messages, m) }

func (w *workload) expect(table string, columns ...any) {
	if w.tables[table] == nil {
		w.tables[table] = rows{}
	}
	w.tables[table].add(columns...)
}

// mainJobQueries read each table the way the workload writes its expectations.
var mainJobQueries = map[string]string{
	"telemetry": `select device_id, time, seq, temperature, status, total, exact, topic, payload->>'exact' from telemetry`,
	"archive":   `select device_id, topic, ` + digestSQL("payload_bytes") + ` from archive`,
	"readings":  `select device_id, metric, value from readings`,
	"blobs":     `select device_id, topic, ` + digestSQL("payload_bytes") + ` from blobs`,
	"batches":   `select device_id, time, n, site from batches`,
	"orders":    `select device_id, id from orders`,
	"events":    `select device_id, id, kind from events`,
}

const (
	mainJobMessages = 20_000
	distinct        = 10_000 // telemetry messages
)

// newWorkload makes the 20 000 messages. The order is shuffled with a fixed seed, so that a
// retransmission may well come before what it repeats.
func newWorkload(base time.Time) *workload {
	w := &workload{tables: map[string]rows{}, received: map[string]int{}, skipped: map[string]int{}, copies: map[string]int{}}
	for i := range distinct {
		w.telemetry(i, base)
	}
	for i := range 500 {
		w.batch(i, base)
	}
	for i := range 800 {
		w.order(i)
	}
	for i := range 400 {
		w.event(i)
	}
	w.blobs()
	w.tombstones()
	for i := 0; len(w.messages) < mainJobMessages; i++ {
		w.reading(i)
	}
	random := rand.New(rand.NewPCG(1, 2))
	random.Shuffle(len(w.messages), func(i, j int) {
		w.messages[i], w.messages[j] = w.messages[j], w.messages[i]
	})
	return w
}

// telemetry is a keyed message; every tenth is retransmitted, every hundredth carries numbers that
// a float64 cannot, every fiftieth is retained by the broker.
func (w *workload) telemetry(i int, base time.Time) {
	device := fmt.Sprintf("dev-%02d", i%20)
	at := base.Add(time.Duration(i) * time.Millisecond)
	temperature := float64(i%500) / 8
	topic := "devices/" + device + "/telemetry"
	exact, exactRow, totalRow := "", any(nil), any(nil)
	if i%100 == 7 {
		number := fmt.Sprintf("1234567890123456789%06d.%05d", i, i)
		exact = fmt.Sprintf(`,"total":%d,"exact":%s`, int64(math.MaxInt64), number)
		exactRow, totalRow = number, int64(math.MaxInt64)
	}
	m := message{
		topic: topic, qos: byte(i % 3), retain: i%50 == 3,
		payload: fmt.Appendf(nil, `{"ts":%q,"seq":%d,"temperature":%v,"status":"ok %d é"%s}`,
			at.Format(time.RFC3339Nano), i, temperature, i%5, exact),
	}
	times := 1
	if i%10 == 0 {
		times = 2
		w.copies["telemetry"]++
	}
	for range times {
		w.publish(m)
		w.received["telemetry"]++
		w.received["archive"]++
		w.expect("archive", device, topic, m.payload) // no key: a retransmission is a reading of its own
	}
	w.expect("telemetry", device, at, i, temperature, fmt.Sprintf("ok %d é", i%5), totalRow, exactRow, topic, exactRow)
}

// batch is one message with several rows; some have none, some come twice.
func (w *workload) batch(i int, base time.Time) {
	device := fmt.Sprintf("logger-%d", i%5)
	var readings []byte
	elements := i % 4
	for n := range elements {
		at := base.Add(time.Duration(i*10+n) * time.Second)
		if n > 0 {
			readings = append(readings, ',')
		}
		readings = fmt.Appendf(readings, `{"t":%d,"n":%d}`, at.UnixMilli(), i*10+n)
		w.expect("batches", device, at, i*10+n, "nord")
	}
	m := message{topic: "batches/" + device, qos: 1, payload: fmt.Appendf(nil, `{"site":"nord","readings":[%s]}`, readings)}
	times := 1 + i%2
	for range times {
		w.publish(m)
		w.received["batches"]++
		if elements == 0 {
			w.skipped["batches"]++
		}
	}
	if elements > 0 {
		w.copies["batches"] += times - 1
	}
}

// order has a key in the payload and no time; every fourth comes twice.
func (w *workload) order(i int) {
	device, id := fmt.Sprintf("till-%d", i%3), fmt.Sprintf("order-%d", i)
	m := message{topic: "orders/" + device, qos: 1 + byte(i%2), payload: fmt.Appendf(nil, `{"id":%q}`, id)}
	w.publish(m)
	w.received["orders"]++
	if i%4 == 0 {
		w.publish(m)
		w.received["orders"]++
		w.copies["orders"]++
	}
	w.expect("orders", device, id)
}

// event has a key in a user property: the payloads are all the same.
func (w *workload) event(i int) {
	device, id := fmt.Sprintf("door-%d", i%4), fmt.Sprintf("event-%d", i)
	m := message{
		topic: "events/" + device, qos: 1, payload: []byte(`{"kind":"open"}`),
		user: paho.UserProperties{{Key: "id", Value: id}},
	}
	for range 1 + i%2 {
		w.publish(m)
		w.received["events"]++
	}
	w.copies["events"] += i % 2
	w.expect("events", device, id, "open")
}

// reading is a bare number without id and time: only 7 different payloads, every one a row.
func (w *workload) reading(i int) {
	device, metric := fmt.Sprintf("meter-%d", i%10), []string{"power", "voltage"}[i%2]
	value := float64(i%7) + 0.5
	w.publish(message{topic: "readings/" + device + "/" + metric, qos: byte(i % 3), payload: fmt.Append(nil, value)})
	w.received["readings"]++
	w.expect("readings", device, metric, value)
}

// tombstones are the empty payloads that clear a retained message. The route of the readings
// passes them over, as it is told to by default.
func (w *workload) tombstones() {
	for i := range 50 {
		w.publish(message{topic: fmt.Sprintf("readings/meter-%d/power", i%10), qos: byte(i % 3), retain: i%2 == 0})
		w.received["readings"]++
		w.skipped["readings"]++
	}
}

// blobs are bytes that are no text, byte-identical ones among them, three of 1 MiB, and empty ones
// in a route that stores them.
func (w *workload) blobs() {
	publish := func(topic, device string, payload []byte, qos byte) {
		w.publish(message{topic: topic, payload: payload, qos: qos})
		w.received["blobs"]++
		w.expect("blobs", device, topic, payload)
	}
	for i := range 300 {
		publish(fmt.Sprintf("blobs/cam-%d/frame/%d", i%3, i%2), fmt.Sprintf("cam-%d", i%3),
			[]byte{0xff, 0xfe, 0x00, 0x80, byte(i % 10), 0xc3, 0x28}, byte(i%3))
	}
	for i := range 3 {
		publish("blobs/cam-9", "cam-9", bytes.Repeat([]byte{0xf0, byte(i), 0x00, 0x9f}, 1<<18), 1)
	}
	for i := range 20 {
		publish("blobs/cam-8/empty", "cam-8", []byte{}, byte(i%3))
	}
}

// TestMainJob publishes 20 000 messages of every kind there is and compares every table with them.
func TestMainJob(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	devices := newPublisher(t, s.broker.URL(), "devices")

	// What the broker had retained before the bridge subscribed is state, not an event. These
	// must not become rows.
	var old []message
	for i := range 20 {
		old = append(old, message{
			topic: fmt.Sprintf("devices/old-%d/telemetry", i), retain: true, qos: 1,
			payload: []byte(`{"ts":"2020-01-01T00:00:00Z","seq":-1}`),
		})
	}
	devices.sendAll(t.Context(), t, old)

	w := newWorkload(time.Now().UTC().Truncate(time.Hour))
	if len(w.messages) != mainJobMessages {
		t.Fatalf("%d messages made instead of %d", len(w.messages), mainJobMessages)
	}
	bridge := s.start(t, mainJobRoutes)
	watchLaw(t, bridge)
	devices.sendAll(t.Context(), t, w.messages)
	waitSettled(t, bridge, w.received)

	for table, query := range mainJobQueries {
		sameRows(t, table, w.tables[table], tableRows(t, s.database, query))
	}
	sameRows(t, "dead_letters", rows{}, tableRows(t, s.database, `select route, topic, reason, detail from bridge.dead_letters`))

	m := scrape(t, bridge)
	for route := range maps.Keys(w.received) {
		got := m.route(route)
		// A broker may send retained messages to a shared subscription: each is counted as
		// received and skipped, and stands in no table.
		retained := m.sum("bridge_messages_skipped_total", "route", route, "reason", "retained")
		want := routeCounts{
			received: float64(w.received[route]) + retained,
			written:  float64(w.received[route] - w.skipped[route] - w.copies[route]),
			skipped:  float64(w.skipped[route]) + retained,
		}
		want.duplicate = float64(w.copies[route])
		if got != want {
			t.Errorf("route %s: %s\nwant %s", route, got, want)
		}
		if rows := m.sum("bridge_rows_written_total", "route", route); int(rows) != w.tables[route].total() {
			t.Errorf("route %s: %v rows counted as written instead of %d", route, rows, w.tables[route].total())
		}
	}
	if dropped := m.sum("bridge_messages_dropped_total"); dropped != 0 {
		t.Errorf("%v messages dropped", dropped)
	}
}
