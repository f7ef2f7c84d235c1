package main

import (
	"os"
	"strings"
	"testing"
	"time"
)

// TestWriterRole: a role that may create nothing writes what an owner has prepared with `bridge migrate
// --tables`, with the privileges of the production overlay and no more.
func TestWriterRole(t *testing.T) {
	b, url := startBroker(t), database(t)
	roles, err := os.ReadFile("../../deploy/k8s/overlays/production/roles.sql")
	if err != nil {
		t.Fatal(err)
	}
	for statement := range strings.SplitSeq(string(roles), ";\n") {
		query(t, url, statement)
	}
	as := func(role string) string { return strings.Replace(url, "user=postgres", "user="+role, 1) }
	settings := append(telemetry, "BRIDGE_MQTT_URLS="+b.url, "BRIDGE_MIGRATE=off")

	environment(t, append(settings, "BRIDGE_DATABASE_URL="+as("bridge_writer"))...)
	r := start(t)
	eventually(t, "the bridge waits for the owner", func() (bool, string) {
		_, body := r.get("/readyz")
		return strings.Contains(body, "migration 1 is pending"), body
	})
	if code, _, _ := bridge(t, "", "migrate", "--tables"); code != exitFailure {
		t.Errorf("the writer may migrate: exit %d", code)
	}
	environment(t, append(settings, "BRIDGE_DATABASE_URL="+as("bridge_owner"))...)
	for range 2 { // it is called again and again
		if code, stdout, stderr := bridge(t, "", "migrate", "--tables"); code != exitOK || !strings.Contains(stdout, "route telemetry: table telemetry fits\n") {
			t.Fatalf("exit %d: %s %s", code, stdout, stderr)
		}
	}
	if got := query(t, url, `select count(*) > 4 from pg_partition_tree('public.telemetry')`); got != "true" {
		t.Errorf("partitions ahead: %s", got)
	}
	environment(t, append(settings, "BRIDGE_DATABASE_URL="+as("bridge_writer"))...)
	if code, stdout, stderr := bridge(t, "", "check", "--connect"); code != exitOK || !strings.Contains(stdout, "table public.telemetry fits") {
		t.Errorf("check as the writer: exit %d: %s %s", code, stdout, stderr)
	}
	r.awaitReady()
	b.publish(t, "devices/d/telemetry", `{"n":1,"ts":"`+time.Now().UTC().Format(time.RFC3339)+`"}`, 1)
	b.publish(t, "devices/d/telemetry", `{`, 1)
	eventually(t, "a row and a dead letter are there", func() (bool, string) {
		got := query(t, url, `select (select count(*) from telemetry) + (select count(*) from bridge.dead_letters)`)
		return got == "2", got
	})
	if code := r.end(); code != exitOK {
		t.Errorf("exit code %d", code)
	}
}

// TestMigrateTablesAndRetention: the role that writes may not drop partitions, so the owner's command does.
func TestMigrateTablesAndRetention(t *testing.T) {
	url := database(t)
	environment(t, append(telemetry, "BRIDGE_DATABASE_URL="+url, "BRIDGE_ROUTE_TELEMETRY_RETENTION=30d")...)
	migrate := func() {
		t.Helper()
		if code, stdout, stderr := bridge(t, "", "migrate", "--tables"); code != exitOK {
			t.Fatalf("exit %d: %s %s", code, stdout, stderr)
		}
	}
	migrate()
	query(t, url, `create table telemetry_p20200101 partition of telemetry for values from ('2020-01-01 00:00+00') to ('2020-01-02 00:00+00')`)
	query(t, url, `insert into telemetry (device_id, time, message_id, received_at, topic) values ('d', '2020-01-02 12:00+00', gen_random_uuid(), now(), 't')`)
	before := query(t, url, `select count(*) from pg_partition_tree('telemetry') where isleaf`)
	migrate()
	if got := query(t, url, `select to_regclass('telemetry_p20200101') is null and not exists (select from telemetry)`); got != "true" {
		t.Error("the old partition or the old row in the default partition is still there")
	}
	if after := query(t, url, `select 1 + count(*) from pg_partition_tree('telemetry') where isleaf`); after != before {
		t.Errorf("%s partitions before, one fewer than %s after", before, after)
	}
}

func TestMigrateTablesSaysWhatDoesNotFit(t *testing.T) {
	url := database(t)
	query(t, url, `create table telemetry (device_id text)`)
	environment(t, append(telemetry, "BRIDGE_DATABASE_URL="+url)...)
	code, stdout, stderr := bridge(t, "", "migrate", "--tables")
	if code != exitFailure || !strings.Contains(stderr, "bridge: route telemetry: prepare table telemetry of route telemetry: ") {
		t.Errorf("exit %d: %s %s", code, stdout, stderr)
	}
	if code, _, _ := bridge(t, "", "migrate", "status", "--tables"); code != exitUsage {
		t.Errorf("status with --tables: exit %d", code)
	}
}
