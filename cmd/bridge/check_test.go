package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/mqttpg/bridge/migrations"
)

func TestCheck(t *testing.T) {
	environment(t, append(telemetry, "BRIDGE_MQTT_QOS=0", "BRIDGE_ROUTES=telemetry,all", "BRIDGE_ROUTE_ALL_TOPIC=#", "BRIDGE_ROUTE_ALL_TABLE=history.all_messages")...)
	code, stdout, stderr := bridge(t, "", "check")
	if code != exitOK {
		t.Errorf("exit %d: %s", code, stderr)
	}
	for _, want := range []string{
		"-- route telemetry\n--   filters:   devices/+/telemetry\n--   table:     telemetry\n", "\n-- route all\n", "--   table:     history.all_messages\n",
		`create table "telemetry" (`, `"n" int4`, "primary key (", `create table "history"."all_messages" (`, "\n--   $share/bridge/# QoS 0\n",
	} {
		if !strings.Contains(stdout, want) {
			t.Errorf("stdout lacks %q:\n%s", want, stdout)
		}
	}
	if !strings.Contains(stderr, "warning: BRIDGE_MQTT_QOS is 0") {
		t.Errorf("stderr: %s", stderr)
	}
	environment(t, "BRIDGE_MQTT_MODE=exclusive")
	if _, stdout, _ := bridge(t, "", "check"); !strings.Contains(stdout, "\n--   # QoS 1\n") {
		t.Errorf("exclusive mode: %s", stdout)
	}
}

func TestCheckConnect(t *testing.T) {
	b, url := startBroker(t), database(t)
	settings := slices.Concat(telemetry, []string{"BRIDGE_MQTT_URLS=mqtt://127.0.0.1:1," + b.url, "BRIDGE_DATABASE_URL=" + url})
	check := func(t *testing.T, code int, out, err []string, extra ...string) {
		t.Helper()
		environment(t, append(settings, extra...)...)
		got, stdout, stderr := bridge(t, "", "check", "--connect")
		if got != code {
			t.Errorf("exit %d, want %d", got, code)
		}
		for _, want := range out {
			if !strings.Contains(stdout, want) {
				t.Errorf("stdout lacks %q:\n%s", want, stdout)
			}
		}
		for _, want := range err {
			if !strings.Contains(stderr, want) {
				t.Errorf("stderr lacks %q:\n%s", want, stderr)
			}
		}
		if len(err) == 0 && stderr != "" {
			t.Errorf("stderr: %s", stderr)
		}
	}
	t.Run("new database", func(t *testing.T) {
		check(t, exitOK, []string{
			"-- broker: connected to " + b.url + " as bridge-check-", "-- broker: granted: QoS up to 2, keep alive 15s",
			"-- broker: subscription to $share/bridge/devices/+/telemetry is granted", "-- database: PostgreSQL 1", "pending",
			"table telemetry does not exist yet and will be created",
		}, nil)
		if got := query(t, url, `select count(*) from pg_namespace where nspname = 'bridge'`); got != "0" {
			t.Error("check has changed the database")
		}
		for id := range b.server.Clients.GetAll() {
			if strings.HasPrefix(id, "bridge-check-") {
				t.Errorf("session %s is left with the broker", id)
			}
		}
	})
	t.Run("unmigrated database that somebody else migrates", func(t *testing.T) {
		check(t, exitFailure, nil, []string{fmt.Sprintf("bridge: database: migrations: %[1]d of %[1]d are pending and BRIDGE_MIGRATE is off", migrations.Latest())}, "BRIDGE_MIGRATE=off")
	})
	t.Run("tables", func(t *testing.T) {
		query(t, url, `create table telemetry (device_id text, "time" timestamptz, message_id uuid, received_at timestamptz, topic text, payload jsonb)`)
		check(t, exitOK, []string{"column n int4 is missing in table telemetry and will be added", "table telemetry fits"}, nil)
		query(t, url, `alter table telemetry add n text`)
		check(t, exitFailure, nil, []string{"bridge: database: route telemetry: column n of table telemetry is text, the route needs int4"})
		query(t, url, `alter table telemetry alter n type int4 using null`)
		query(t, url, `create role reader login`)
		check(t, exitFailure, nil, []string{"this user may not insert into table telemetry", "schema bridge does not exist and this user may not create it"},
			"BRIDGE_DATABASE_URL="+strings.Replace(url, "user=postgres", "user=reader", 1))
		query(t, url, `drop table telemetry`)
	})
	t.Run("standby", func(t *testing.T) {
		query(t, url, `alter role reader set default_transaction_read_only = on`)
		check(t, exitFailure, nil, []string{"the server takes no writes"}, "BRIDGE_DATABASE_URL="+strings.Replace(url, "user=postgres", "user=reader", 1))
	})
	t.Run("nothing answers", func(t *testing.T) {
		check(t, exitFailure, nil, []string{"bridge: broker: mqtt://127.0.0.1:1: ", "connection refused", "bridge: database: connect to the database: "},
			"BRIDGE_MQTT_URLS=mqtt://127.0.0.1:1", "BRIDGE_DATABASE_URL=postgres://u:hunter2@127.0.0.1:1/d")
	})
	t.Run("subscription downgraded", func(t *testing.T) {
		b.server.Options.Capabilities.MaximumQos = 0
		check(t, exitFailure, []string{"granted: QoS up to 0"}, []string{"bridge: broker: subscription to $share/bridge/devices/+/telemetry: the broker granted QoS 0"})
		check(t, exitOK, []string{"-- broker: subscription to devices/+/telemetry is granted"}, []string{"warning: BRIDGE_MQTT_QOS is 0"},
			"BRIDGE_MQTT_MODE=exclusive", "BRIDGE_MQTT_QOS=0")
	})
}
