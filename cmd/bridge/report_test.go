package main

import (
	"context"
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
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	found := false
	for _, loop := range s.loops() {
		found = found || loop.Name == "leases" && !loop.LastTurn.IsZero()
	}
	if !found {
		t.Errorf("liveness does not watch the leases: %+v", s.loops())
	}
}
