package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/mqttpg/bridge/health"
	"github.com/mqttpg/bridge/migrations"
	"github.com/mqttpg/bridge/store"
	"go.uber.org/zap/zaptest"
)

// TestReportOfASessionJustTaken: between the lease and the first connection the bridge reads nothing,
// and is no hot standby.
func TestReportOfASessionJustTaken(t *testing.T) {
	environment(t, append(telemetry, "BRIDGE_DATABASE_URL="+database(t))...)
	cfg, err := loadConfig()
	if err != nil {
		t.Fatal(err)
	}
	s, err := newService(t.Context(), cfg, zaptest.NewLogger(t))
	if err != nil {
		t.Fatal(err)
	}
	defer s.pool.Close()
	conn, err := s.pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	err = migrations.Apply(t.Context(), conn.Conn(), cfg.Schema.value, func(migrations.Migration) {})
	conn.Release()
	if err != nil {
		t.Fatal(err)
	}
	s.setPrepared()
	ctx, stop := context.WithCancel(t.Context())
	held, ended := make(chan struct{}), make(chan error)
	go func() {
		ended <- s.leases.Run(ctx, func(ctx context.Context, _ *store.Lease) {
			close(held)
			<-ctx.Done()
		})
	}()
	<-held
	r := s.report()
	if len(r.Broker) != 1 || r.Broker[0].ClientID != "bridge-0" || r.Broker[0].State == "subscribed" || r.Process.State == health.Stopping {
		t.Errorf("broker %+v, process %+v", r.Broker, r.Process)
	}
	eventually(t, "liveness watches the leases", func() (bool, string) {
		return slices.ContainsFunc(s.loops(), func(l health.Loop) bool { return l.Name == "leases" && !l.LastTurn.IsZero() }), fmt.Sprint(s.loops())
	})
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if slices.ContainsFunc(s.loops(), func(l health.Loop) bool { return l.Name == "leases" }) {
		t.Errorf("liveness watches leases that do not run: %+v", s.loops())
	}
}

// TestTableTroubleIsToldOnce: trouble with one table is the route's and not the database's, and a table
// that is only not as good as it could be degrades nothing.
func TestTableTroubleIsToldOnce(t *testing.T) {
	b, url := startBroker(t), database(t)
	query(t, url, `create table telemetry (device_id text, "time" timestamptz, message_id uuid)`)
	environment(t, append(telemetry, "BRIDGE_MQTT_URLS="+b.url, "BRIDGE_DATABASE_URL="+url, "BRIDGE_MQTT_RECEIVE_MAXIMUM=77")...)
	r := start(t)
	r.awaitReady()
	report := r.health()
	if warning := report.Routes["telemetry"].Warning; report.Status != health.OK || !strings.Contains(warning, "no unique index on exactly (device_id, time, message_id)") {
		t.Errorf("status %s %q, warning %q", report.Status, report.Reasons, warning)
	}
	if n := report.Broker[0].ReceiveMaximum; n != 77 {
		t.Errorf("receive maximum %d", n)
	}
	if text := r.log.String(); !strings.Contains(text, `"message":"table of route","route":"telemetry","table":"public.telemetry"`) {
		t.Error("the log does not tell where the table is")
	}
	// Each in one transaction: the bridge makes a table that is gone.
	query(t, url, `do $$ begin
		alter table telemetry rename to old;
		create table telemetry (device_id text, "time" timestamptz, message_id uuid, n text);
	end $$`)
	b.publish(t, "devices/a/telemetry", `{"ts":"2026-01-01T00:00:00Z","n":1}`, 1)
	eventually(t, "the route fails", func() (bool, string) {
		report = r.health()
		return report.Routes["telemetry"].Failing != "", fmt.Sprintf("%+v", report)
	})
	if report.Status != health.Degraded || len(report.Reasons) != 1 || report.Database.LastError != "" {
		t.Errorf("status %s, reasons %q, last error of the database %q", report.Status, report.Reasons, report.Database.LastError)
	}
	query(t, url, `do $$ begin
		drop table telemetry;
		alter table old rename to telemetry;
	end $$`)
	eventually(t, "the message is written", func() (bool, string) {
		got := query(t, url, `select n from telemetry`)
		return got == "1", got
	})
	if code := r.end(); code != exitOK {
		t.Errorf("exit code %d", code)
	}
}
