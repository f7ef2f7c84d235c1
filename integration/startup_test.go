//go:build unix

package integration

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/mqttpg/bridge/integration/provider"
)

// TestMigrationsConcurrently starts three bridges at once on an empty database.
func TestMigrationsConcurrently(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	var bridges []*provider.Bridge
	for range 3 {
		bridges = append(bridges, s.launch(t, streamRoutes))
	}
	for _, bridge := range bridges {
		waitReady(t, bridge) // one owns the session, two are hot standbys: all are ready
	}
	owned := 0.0
	for _, bridge := range bridges {
		owned += sessionsOwned(t, bridge)
	}
	if owned != 1 {
		t.Errorf("three bridges own %v sessions together instead of 1", owned)
	}
	load := newStreamLoad(300)
	newPublisher(t, s.broker.URL(), "devices").sendAll(t.Context(), t, load.messages)
	load.waitAndCompare(t, s, true, bridges...)
}

// TestBridgeStartsBeforeDatabaseAndBroker starts the bridge with nothing to connect to. It waits,
// alive and not ready, and becomes ready when both come.
func TestBridgeStartsBeforeDatabaseAndBroker(t *testing.T) {
	t.Parallel()
	s := newFragileScene(t)
	must(t, s.server.Stop(t.Context()))
	must(t, s.broker.Stop(t.Context()))
	bridge := s.launch(t, streamRoutes)
	eventually(t, "/livez answers 200", func() (bool, string) {
		status, body := page(t, bridge, "/livez")
		return status == http.StatusOK, fmt.Sprint(status, body)
	})
	eventually(t, "/readyz names the database", func() (bool, string) { return notReady(t, bridge, "database") })

	must(t, s.server.Start(t.Context()))
	eventually(t, "/readyz names the broker alone", func() (bool, string) {
		ok, state := notReady(t, bridge, "broker")
		return ok && !containsAll(state, "database"), state
	})
	must(t, s.broker.Start(t.Context()))
	waitReady(t, bridge)

	load := newStreamLoad(300)
	newPublisher(t, s.broker.URL(), "devices").sendAll(t.Context(), t, load.messages)
	load.waitAndCompare(t, s, true, bridge)
}

// TestEnvExample runs the example of the contract as it stands there.
func TestEnvExample(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	bridge := s.start(t, map[string]string{
		"BRIDGE_ROUTES":                  "telemetry",
		"BRIDGE_ROUTE_TELEMETRY_TOPIC":   "devices/{device_id}/telemetry",
		"BRIDGE_ROUTE_TELEMETRY_TIME":    "$.ts",
		"BRIDGE_ROUTE_TELEMETRY_COLUMNS": "temperature:float8=$.temperature, humidity:float8=$.humidity, status:text=$.status",
	})
	at := time.Now().UTC().Truncate(time.Millisecond)
	payload := fmt.Sprintf(`{"ts":%q,"temperature":21.5,"humidity":40.25,"status":"ok"}`, at.Format(time.RFC3339Nano))
	newPublisher(t, s.broker.URL(), "devices").sendAll(t.Context(), t, []message{
		{topic: "devices/kitchen/telemetry", payload: []byte(payload), qos: 1},
		{topic: "devices/cellar/telemetry", payload: fmt.Appendf(nil, `{"ts":%d}`, at.UnixMilli()), qos: 1},
	})
	waitSettled(t, bridge, map[string]int{"telemetry": 2})
	want := rows{}
	want.add("kitchen", at, "devices/kitchen/telemetry", "21.5", "40.25", "ok", true)
	want.add("cellar", at, "devices/cellar/telemetry", nil, nil, nil, true)
	sameRows(t, "telemetry", want, tableRows(t, s.database,
		`select device_id, time, topic, temperature, humidity, status, payload ? 'ts' from telemetry`))
	sameRows(t, "types of the columns", rows{
		"device_id | text": 1, "time | timestamp with time zone": 1, "message_id | uuid": 1,
		"received_at | timestamp with time zone": 1, "topic | text": 1, "temperature | double precision": 1,
		"humidity | double precision": 1, "status | text": 1, "payload | jsonb": 1, "payload_bytes | bytea": 1,
	}, tableRows(t, s.database,
		`select column_name, data_type from information_schema.columns where table_name = 'telemetry' and table_schema = 'public'`))
}
