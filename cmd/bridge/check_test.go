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

// TestCheckRoute: the lines about a route say what of its configuration decides over its rows.
func TestCheckRoute(t *testing.T) {
	for _, c := range []struct {
		env  string
		want string
	}{
		{"", "--   table:     a\n--   partition: day, kept for ever\n--   messages are told apart by their delivery: a redelivery"},
		{"TIME=$.ts PARTITION=week RETENTION=12w", "--   partition: week, kept for 84d\n--   messages are told apart by what they hold: neither"},
		{
			"KEY=$.seq", "--   partition: none, kept for ever\n--   messages are told apart by KEY ($.seq) and device, for ever: one with equal values makes no second row, " +
				"whatever else it holds; when a counter begins anew, new messages pass for old ones\n",
		},
		{"KEY=$.seq,user.x TIME=$.ts", "--   messages are told apart by KEY ($.seq, user.x), device and TIME: one with equal values makes no second row, whatever else it holds\n"},
		{"KEY=delivery TIME=$.ts", "--   messages are told apart by their delivery: "},
	} {
		env := []string{"BRIDGE_ROUTES=a", "BRIDGE_ROUTE_A_TOPIC=a/+"}
		for entry := range strings.FieldsSeq(c.env) {
			env = append(env, "BRIDGE_ROUTE_A_"+entry)
		}
		environment(t, env...)
		if code, stdout, stderr := bridge(t, "", "check"); code != exitOK || !strings.Contains(stdout, c.want) {
			t.Errorf("%s: exit %d, %s\n%swant %s", c.env, code, stderr, stdout, c.want)
		}
	}
}

// TestCheckSharedTable: routes into one table give one statement, with the columns of all.
func TestCheckSharedTable(t *testing.T) {
	environment(t, "BRIDGE_ROUTES=a,b,c", "BRIDGE_ROUTE_A_TOPIC=a/+", "BRIDGE_ROUTE_A_TABLE=readings", "BRIDGE_ROUTE_A_COLUMNS=x:int4=$.x, y:int4=$.y", "BRIDGE_ROUTE_A_PAYLOAD=drop",
		"BRIDGE_ROUTE_B_TOPIC=b/+", "BRIDGE_ROUTE_C_TOPIC=c/+", "BRIDGE_ROUTE_C_TABLE=readings", "BRIDGE_ROUTE_C_COLUMNS=y:int4=$.y, z:text=$.z")
	code, stdout, stderr := bridge(t, "", "check")
	if code != exitOK || stderr != "" {
		t.Errorf("exit %d: %s", code, stderr)
	}
	if n := strings.Count(stdout, `create table "readings" (`); n != 1 {
		t.Errorf("%d statements for the shared table", n)
	}
	if n := strings.Count(stdout, "--   table:     readings, shared by the routes a, c\n"); n != 2 {
		t.Errorf("%d routes tell that they share the table", n)
	}
	for _, want := range []string{"    \"x\" int4,\n    \"y\" int4,\n    \"z\" text,\n    \"payload\" jsonb,\n", `create table "b" (`} {
		if !strings.Contains(stdout, want) {
			t.Errorf("stdout lacks %q:\n%s", want, stdout)
		}
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
	as := func(role string) string { return strings.Replace(url, "user=postgres", "user="+role, 1) }
	t.Run("new database", func(t *testing.T) {
		check(t, exitOK, []string{
			"-- broker: connected to " + b.url + " as bridge-check-", "-- broker: granted: QoS up to 2, keep alive 15s",
			"-- broker: subscription to $share/bridge/devices/+/telemetry is granted", "-- database: PostgreSQL 1", "pending",
			"table public.telemetry does not exist yet and will be created",
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
	t.Run("another encoding", func(t *testing.T) {
		query(t, url, `create database latin encoding 'LATIN1' locale 'C' template template0`)
		latin := strings.Replace(url, "testcheckconnect", "latin", 1)
		const refusal = "the database has the encoding LATIN1, and text is written as UTF-8"
		check(t, exitFailure, nil, []string{"bridge: database: " + refusal}, "BRIDGE_DATABASE_URL="+latin)
		environment(t, append(settings, "BRIDGE_DATABASE_URL="+latin)...)
		if code, _, stderr := bridge(t, "", "migrate"); code != exitFailure || !strings.Contains(stderr, refusal) {
			t.Errorf("migrate: exit %d, %s", code, stderr)
		}
	})
	t.Run("unmigrated database that somebody else migrates", func(t *testing.T) {
		check(t, exitFailure, nil, []string{fmt.Sprintf("bridge: database: migrations: %[1]d of %[1]d are pending and BRIDGE_MIGRATE is off", migrations.Latest())}, "BRIDGE_MIGRATE=off")
		query(t, url, `create role guest login`) // whoever it is: it is not asked to make anything
		check(t, exitFailure, nil, []string{"are pending and BRIDGE_MIGRATE is off: run bridge migrate"}, "BRIDGE_MIGRATE=off", "BRIDGE_DATABASE_URL="+as("guest"))
	})
	t.Run("settings of the server", func(t *testing.T) {
		alter := func(what string) {
			query(t, url, `do $$ begin execute format('alter database %I `+what+`', current_database()); end $$`)
		}
		alter(`set statement_timeout = ''7s''`)
		defer alter(`reset statement_timeout`)
		check(t, exitOK, nil, []string{"warning: database: statement_timeout is 7000 for this connection (from: database): batches have limits of their own, but migrations"})
	})
	t.Run("a table with two names", func(t *testing.T) {
		check(t, exitOK, []string{"table public.telemetry does not exist yet and will be created"},
			[]string{"warning: database: route again: TABLE public.telemetry is the same table as TABLE telemetry of route telemetry"},
			"BRIDGE_ROUTES=telemetry,again", "BRIDGE_ROUTE_AGAIN_TOPIC=again/+", "BRIDGE_ROUTE_AGAIN_TABLE=public.telemetry")
	})
	t.Run("tables", func(t *testing.T) {
		query(t, url, `create table telemetry (device_id text, "time" timestamptz, n int4)`)
		check(t, exitFailure, nil, []string{"bridge: database: route telemetry: table telemetry: has no column message_id, which belongs to the key (device_id, time, message_id)"})
		query(t, url, `alter table telemetry add message_id uuid, add topic text, add received_at timestamptz, add payload jsonb, drop n`)
		check(t, exitOK, []string{"column n int4 is missing in table public.telemetry and will be added", "table public.telemetry fits"},
			[]string{"warning: database: route telemetry: table telemetry has no unique index on exactly (device_id, time, message_id)"})
		query(t, url, `alter table telemetry add unique (device_id, "time", message_id)`)
		check(t, exitOK, []string{"table public.telemetry fits"}, nil, "BRIDGE_ROUTE_TELEMETRY_PARTITION=none")
		query(t, url, `alter table telemetry add n text`)
		check(t, exitFailure, nil, []string{"bridge: database: route telemetry: table telemetry: column n is text, the route writes int4"})
		query(t, url, `alter table telemetry alter n type int4 using null`)
		query(t, url, `create role reader login`)
		check(t, exitFailure, nil, []string{
			`route telemetry: table telemetry: the role has no privilege to insert: grant select, insert on "public"."telemetry" to "reader"`,
			`schema bridge does not exist and this user may not create it: grant create on database "testcheckconnect" to "reader"`,
		}, "BRIDGE_DATABASE_URL="+as("reader"))
		query(t, url, `create schema bridge`)
		check(t, exitFailure, nil, []string{`schema bridge exists and this user may not create tables in it: grant usage, create on schema bridge to "reader"`}, "BRIDGE_DATABASE_URL="+as("reader"))
		query(t, url, `drop schema bridge`)
		query(t, url, `drop table telemetry`)
	})
	t.Run("place of the tables", func(t *testing.T) {
		query(t, url, `create role bridge login`)
		query(t, url, `grant create on database testcheckconnect to reader, bridge`)
		check(t, exitFailure, nil, []string{
			`table public.telemetry: does not exist, and the role may not create it in schema public: grant usage, create on schema "public" to "reader"`,
		}, "BRIDGE_DATABASE_URL="+as("reader"))
		check(t, exitOK, []string{`user bridge, search_path "$user", public`, "table bridge.telemetry does not exist yet and will be created"},
			[]string{"warning: database: route telemetry: table telemetry is in schema bridge, beside the bridge's own tables"}, "BRIDGE_DATABASE_URL="+as("bridge"))
		check(t, exitOK, []string{"table public.telemetry does not exist yet and will be created"}, nil)
	})
	t.Run("tables that another role makes", func(t *testing.T) {
		environment(t, settings...)
		if code, _, stderr := bridge(t, "", "migrate", "--tables"); code != exitOK {
			t.Fatalf("migrate: %s", stderr)
		}
		query(t, url, `create role clerk login`)
		query(t, url, `grant usage on schema bridge to clerk`)
		query(t, url, `grant select, insert, update, delete on all tables in schema bridge to clerk`)
		query(t, url, `grant select, insert on all tables in schema public to clerk`)
		clerk, off := "BRIDGE_DATABASE_URL="+as("clerk"), "BRIDGE_MIGRATE=off"
		check(t, exitOK, []string{"table public.telemetry fits"}, nil, clerk, off)
		check(t, exitOK, nil, []string{"warning: database: route telemetry: partitions are neither made nor dropped: table public.telemetry belongs to another role"}, clerk)
		query(t, url, `revoke insert, delete on bridge.deliveries from clerk`)
		query(t, url, `revoke execute on all functions in schema bridge from public`)
		check(t, exitOK, nil, []string{"warning: database: this user may not delete on table deliveries, execute on function ", "insert on table deliveries: grant select,"}, clerk, off)
		query(t, url, `grant insert, delete on bridge.deliveries to clerk`)
		query(t, url, `grant execute on all functions in schema bridge to clerk`)
		const more, hint = "BRIDGE_ROUTE_TELEMETRY_COLUMNS=n:int4=$.n, extra:text=$.extra", "let bridge migrate --tables do it as the role that owns the tables"
		check(t, exitFailure, nil, []string{"lacks extra text, and only its owner can add columns", hint}, clerk, off, more)
		query(t, url, `drop table telemetry`)
		check(t, exitFailure, nil, []string{"does not exist, and the role may not create it in schema public", hint}, clerk, off)
		query(t, url, `drop schema bridge cascade`)
	})
	t.Run("replicas", func(t *testing.T) {
		environment(t, settings...)
		if code, _, stderr := bridge(t, "", "migrate"); code != exitOK {
			t.Fatalf("migrate: %s", stderr)
		}
		query(t, url, `insert into bridge.replicas (id, share_name, host) select 'r' || n, 'bridge', 'h' from generate_series(1, 3) n`)
		check(t, exitOK, nil, []string{"warning: database: 3 replicas running for 2 sessions, 1 of them on standby: BRIDGE_MQTT_SESSIONS is"}, "BRIDGE_MQTT_SESSIONS=2")
		check(t, exitOK, nil, []string{"warning: database: 3 replicas running for 1 session, 2 of them on standby: BRIDGE_MQTT_SESSIONS is"})
		check(t, exitOK, []string{"-- database: 3 replicas running, for 3 sessions"}, nil, "BRIDGE_MQTT_SESSIONS=3")
		query(t, url, `update bridge.replicas set heartbeat_at = now() - interval '1 minute' where id <> 'r1'`)
		check(t, exitOK, []string{"-- database: 1 replica running, for 1 session\n"}, nil)
		query(t, url, `update bridge.replicas set heartbeat_at = now() - interval '1 minute'`)
		check(t, exitOK, nil, nil) // of the dead nothing is said
		query(t, url, `drop schema bridge cascade`)
	})
	t.Run("standby", func(t *testing.T) {
		query(t, url, `alter role reader set default_transaction_read_only = on`)
		check(t, exitFailure, nil, []string{"the server takes no writes"}, "BRIDGE_DATABASE_URL="+as("reader"))
	})
	t.Run("nothing answers", func(t *testing.T) {
		check(t, exitFailure, nil, []string{"bridge: broker: mqtt://127.0.0.1:1: ", "connection refused", "bridge: database: connect to the database: "},
			"BRIDGE_MQTT_URLS=mqtt://127.0.0.1:1", "BRIDGE_DATABASE_URL=postgres://u:hunter2@127.0.0.1:1/d")
	})
	t.Run("a line each", func(t *testing.T) {
		environment(t, "BRIDGE_MQTT_URLS=mqtt://127.0.0.1:1", "BRIDGE_DATABASE_URL=postgres://u@127.0.0.1:1,127.0.0.1:2/d")
		if _, _, stderr := bridge(t, "", "check", "--connect"); strings.Count(stderr, "\n") != 2 || strings.Count(stderr, "connection refused") != 3 {
			t.Errorf("three addresses, in two lines, and each once:\n%s", stderr)
		}
	})
	t.Run("subscription downgraded", func(t *testing.T) {
		b.server.Options.Capabilities.MaximumQos = 0
		check(t, exitFailure, []string{"granted: QoS up to 0"}, []string{"bridge: broker: subscription to $share/bridge/devices/+/telemetry: the broker granted QoS 0"})
		check(t, exitOK, []string{"-- broker: subscription to devices/+/telemetry is granted"}, []string{"warning: BRIDGE_MQTT_QOS is 0"},
			"BRIDGE_MQTT_MODE=exclusive", "BRIDGE_MQTT_QOS=0")
	})
}
