//go:build unix

package integration

import (
	"fmt"
	"testing"
	"time"
)

// poisonRoutes write into a table that its owner made, with rules of its own, and into one that
// asks for a key.
var poisonRoutes = map[string]string{
	"BRIDGE_ROUTES": "measure,keyed",

	"BRIDGE_ROUTE_MEASURE_TOPIC":   "measure/+",
	"BRIDGE_ROUTE_MEASURE_TABLE":   "measurements",
	"BRIDGE_ROUTE_MEASURE_DEVICE":  "$.device",
	"BRIDGE_ROUTE_MEASURE_TIME":    "$.ts",
	"BRIDGE_ROUTE_MEASURE_COLUMNS": "n:int4=$.n, value:float8=$.value, label:varchar(8)=$.label",

	"BRIDGE_ROUTE_KEYED_TOPIC":   "keyed/{device_id}",
	"BRIDGE_ROUTE_KEYED_KEY":     "$.id",
	"BRIDGE_ROUTE_KEYED_COLUMNS": "id:text=$.id",
}

// measurementsTable is the table of a user who wants no value above 1000.
const measurementsTable = `create table measurements (
	device_id   text             not null,
	time        timestamptz      not null,
	message_id  uuid             not null,
	received_at timestamptz      not null,
	topic       text             not null,
	n           integer,
	value       double precision check (value <= 1000),
	label       varchar(8),
	payload     jsonb,
	primary key (device_id, time, message_id)
)`

// poisons are the ways a message can be broken. Each payload takes its own number, so that no two
// are alike and each can be told in the dead letters.
var poisons = []struct {
	name    string
	topic   string
	reason  string
	payload func(i int, ts string) []byte
}{
	{"malformed JSON", "measure/a", "invalid_payload", func(i int, ts string) []byte {
		return fmt.Appendf(nil, `{"device":"a","ts":%q,"n":%d,`, ts, i)
	}},
	{"wrong type", "measure/a", "invalid_value", func(i int, ts string) []byte {
		return fmt.Appendf(nil, `{"device":"a","ts":%q,"n":%d,"value":"warm"}`, ts, i)
	}},
	{"out of range", "measure/a", "invalid_value", func(i int, ts string) []byte {
		return fmt.Appendf(nil, `{"device":"a","ts":%q,"n":%d}`, ts, 3_000_000_000+i)
	}},
	{"NUL in text", "measure/a", "invalid_utf8", func(i int, ts string) []byte {
		return fmt.Appendf(nil, `{"device":"a","ts":%q,"n":%d,"label":"a\u0000b"}`, ts, i)
	}},
	{"invalid UTF-8", "measure/a", "invalid_utf8", func(i int, ts string) []byte {
		return fmt.Appendf(nil, "{\"device\":\"a\",\"ts\":%q,\"n\":%d,\"label\":\"\xff\xc3(\"}", ts, i)
	}},
	{"lone surrogate", "measure/a", "invalid_utf8", func(i int, ts string) []byte {
		return fmt.Appendf(nil, `{"device":"a","ts":%q,"n":%d,"label":"\ud800"}`, ts, i)
	}},
	{"no device", "measure/a", "invalid_device", func(i int, ts string) []byte {
		return fmt.Appendf(nil, `{"ts":%q,"n":%d}`, ts, i)
	}},
	{"no time", "measure/a", "invalid_time", func(i int, _ string) []byte {
		return fmt.Appendf(nil, `{"device":"a","n":%d}`, i)
	}},
	{"no key", "keyed/a", "invalid_key", func(i int, _ string) []byte {
		return fmt.Appendf(nil, `{"n":%d}`, i)
	}},
	{"check constraint", "measure/a", "database", func(i int, ts string) []byte {
		return fmt.Appendf(nil, `{"device":"a","ts":%q,"n":%d,"value":1000.5}`, ts, i)
	}},
	{"text too long", "measure/a", "invalid_value", func(i int, ts string) []byte {
		return fmt.Appendf(nil, `{"device":"a","ts":%q,"n":%d,"label":"nine char"}`, ts, i)
	}},
}

// TestPoison mixes one per cent of every kind of broken message into a stream: every good message
// is written, and every bad one is kept with its reason and its exact bytes.
func TestPoison(t *testing.T) {
	t.Parallel()
	const total, each = 6000, 60
	s := newScene(t)
	execute(t, s.database, measurementsTable)
	bridge := s.start(t, poisonRoutes)
	watchLaw(t, bridge)

	good, dead := map[string]rows{"measurements": {}, "keyed": {}}, rows{}
	received := map[string]int{}
	base := time.Now().UTC().Truncate(time.Hour)
	var messages []message
	for i := range total {
		at := base.Add(time.Duration(i) * time.Millisecond)
		ts := at.Format(time.RFC3339Nano)
		kind := i % (total / each)
		switch {
		case kind < len(poisons):
			poison := poisons[kind]
			m := message{topic: poison.topic, payload: poison.payload(i, ts), qos: 1}
			messages = append(messages, m)
			route := map[string]string{"measure/a": "measure", "keyed/a": "keyed"}[poison.topic]
			received[route]++
			dead.add(route, m.topic, poison.reason, m.payload, 1)
		case i%2 == 0:
			messages = append(messages, message{
				topic: "measure/a", qos: 1,
				payload: fmt.Appendf(nil, `{"device":"pump-%d","ts":%q,"n":%d,"value":%d,"label":"ok"}`, i%7, ts, i, i%1000),
			})
			received["measure"]++
			good["measurements"].add(fmt.Sprintf("pump-%d", i%7), at, i, i%1000, "ok")
		default:
			messages = append(messages, message{topic: "keyed/k", qos: 1, payload: fmt.Appendf(nil, `{"id":"k%d"}`, i)})
			received["keyed"]++
			good["keyed"].add("k", fmt.Sprintf("k%d", i))
		}
	}
	devices := newPublisher(t, s.broker.URL(), "devices")
	devices.sendAll(t.Context(), t, messages)
	waitSettled(t, bridge, received)

	sameRows(t, "measurements", good["measurements"], tableRows(t, s.database, `select device_id, time, n, value, label from measurements`))
	sameRows(t, "keyed", good["keyed"], tableRows(t, s.database, `select device_id, id from keyed`))
	sameRows(t, "dead_letters", dead, tableRows(t, s.database,
		`select route, topic, reason, `+digestSQL("payload")+`, qos from bridge.dead_letters`))
	// The reason is for a person to act on: it must say something about every one of them.
	sameRows(t, "dead letters without detail", rows{}, tableRows(t, s.database,
		`select id, reason from bridge.dead_letters where coalesce(detail, '') = ''`))

	m := scrape(t, bridge)
	for route, n := range received {
		c := m.route(route)
		if int(c.received) != n || int(c.written) != goodOf(route, good) {
			t.Errorf("route %s: %s; %d messages sent, %d of them good", route, c, n, goodOf(route, good))
		}
	}
	if got := m.sum("bridge_messages_dead_lettered_total"); int(got) != dead.total() {
		t.Errorf("%v dead letters counted instead of %d", got, dead.total())
	}
}

func goodOf(route string, good map[string]rows) int {
	return good[map[string]string{"measure": "measurements", "keyed": "keyed"}[route]].total()
}
