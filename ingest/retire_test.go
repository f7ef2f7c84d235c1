package ingest

import (
	"context"
	"errors"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// TestStaleSubscriptionsEnd: the broker's session is subscribed to more than is wanted.
func TestStaleSubscriptionsEnd(t *testing.T) {
	broker := startMosquitto(t, "")
	publisher := newClient(t, broker.url(), "publisher")
	r := newRig(t, func(cfg *Config) { cfg.Filters = []string{"t/+", "old/#"} }, broker.url())
	r.awaitState(StateSubscribed)
	r.close()

	var told atomic.Int64
	r = newRig(t, func(cfg *Config) {
		cfg.Filters = []string{"t/#"}
		cfg.Stale = []string{"$share/test/t/+", "$share/test/old/#", "$share/test/never/was"}
		cfg.Unsubscribed = func(context.Context) error {
			if told.Add(1) == 1 {
				return errors.New("the database is away") // it is told again
			}
			return nil
		}
	}, broker.url())
	r.awaitState(StateSubscribed)
	eventually(t, "the callback succeeded", func() bool { return told.Load() == 2 })
	publisher.publish("old/x", "unwanted", 1)
	publisher.publish("t/x", "wanted", 1)
	publisher.publish("t/end", "wanted", 1)
	for _, d := range r.received(2) {
		if string(d.Message.Payload) != "wanted" {
			t.Errorf("delivered: %s %s", d.Message.Topic, d.Message.Payload)
		}
	}
	if n := len(r.all()); n != 2 {
		t.Errorf("%d deliveries of two messages", n)
	}
	r.close()
	if told.Load() != 2 {
		t.Errorf("told %d times", told.Load())
	}
	if got := (&Config{ShareName: "s", Filters: []string{"a", "b/#"}}).Subscriptions(); !slices.Equal(got, []string{"$share/s/a", "$share/s/b/#"}) {
		t.Errorf("subscriptions %v", got)
	}
}

// TestEnd: the broker forgets a session that is ended, and not one that is closed.
func TestEnd(t *testing.T) {
	broker := startMosquitto(t, "")
	r := newRig(t, nil, broker.url())
	if err := newIdleRig(t, nil, broker.url()).session.Barrier(t.Context()); !errors.Is(err, errNotConnected) {
		t.Errorf("barrier of a session that does not run: %v", err)
	}
	r.awaitState(StateSubscribed)
	if err := r.session.Barrier(t.Context()); err != nil {
		t.Errorf("barrier: %v", err)
	}
	r.close()

	r = newRig(t, func(cfg *Config) {
		cfg.Filters = nil
		cfg.Stale = []string{"$share/test/t/#"}
	}, broker.url())
	r.awaitState(StateSubscribed) // to nothing, as wanted
	if st := r.session.Status(); !st.SessionPresent || len(st.Subscriptions) != 0 {
		t.Errorf("status %+v", st)
	}
	eventually(t, "unsubscribed", func() bool { return strings.Contains(broker.log.String(), "Received UNSUBSCRIBE from "+testClientID) })
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := r.session.End(ctx); err != nil {
		t.Fatal(err)
	}
	if err := <-r.ran; err != nil {
		t.Fatal(err)
	}

	r = newRig(t, nil, broker.url())
	r.awaitState(StateSubscribed)
	if r.session.Status().SessionPresent {
		t.Error("the broker still has the session that was ended")
	}
	r.close()
}

// TestContestedSession: an owner that cannot confirm its right to the client id does not come back
// after a takeover, and does when it can.
func TestContestedSession(t *testing.T) {
	broker := startMosquitto(t, "")
	relay := startRelayThat(t, broker.addr(), withoutDisconnect) // a reason code would make it wait for up to a minute
	var confirmed atomic.Bool
	var asked atomic.Int64
	r := newRig(t, func(cfg *Config) {
		cfg.Confirm = func() error {
			asked.Add(1)
			if confirmed.Load() {
				return nil
			}
			return errors.New("the lease is in doubt")
		}
	}, relay.url())
	r.awaitState(StateSubscribed)
	if asked.Load() != 0 {
		t.Error("asked before the first connection")
	}
	connects := func() int { return strings.Count(broker.log.String(), "connected from") }
	before := connects()
	rival := newClient(t, broker.url(), testClientID)
	eventually(t, "the session asks", func() bool { return asked.Load() >= 2 })
	if got := r.session.Status(); got.State == StateSubscribed || !strings.Contains(got.LastReason, "the lease is in doubt") {
		t.Errorf("status %+v", got)
	}
	if n := connects() - before; n != 1 {
		t.Errorf("%d connections of one rival", n)
	}
	if err := rival.cm.Disconnect(t.Context()); err != nil {
		t.Fatal(err)
	}
	confirmed.Store(true)
	r.awaitState(StateSubscribed)
	r.close()
}

func TestShown(t *testing.T) {
	u, err := url.Parse("wss://user:secret@broker:8884/mqtt?token=secret#secret")
	if err != nil {
		t.Fatal(err)
	}
	if got := shown(u); got != "wss://broker:8884/mqtt" {
		t.Errorf("shown %s", got)
	}
}
