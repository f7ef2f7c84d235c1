package main

import (
	"context"
	"crypto/rand"
	"strings"
	"time"

	"github.com/mqttpg/bridge/ingest"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
)

// brokerTimeout is how long the broker has for CONNACK and SUBACK.
const brokerTimeout = 15 * time.Second

// checkBroker connects and subscribes as a session would, but under a client id and a Share Name that
// are drawn at random, with a session that ends with the connection: the real group loses nothing to
// it, and nothing of it stays with the broker.
func (cfg *config) checkBroker(ctx context.Context) findings {
	var found findings
	id := cfg.clientIDPrefix() + "-check-" + strings.ToLower(rand.Text()[:12])
	mqtt := cfg.ingest(zap.NewNop())
	mqtt.SessionExpiry, mqtt.StatusTopic = 0, ""
	if mqtt.ShareName != "" {
		mqtt.ShareName = id
	}
	mqtt.Budget, mqtt.Metrics = ingest.NewBudget(int64(cfg.MaxInflightBytes.value)), ingest.NewMetrics(prometheus.NewRegistry())
	mqtt.Deliver = func(_ context.Context, d *ingest.Delivery) { mqtt.Budget.Release(int64(d.Size)) }
	session, err := ingest.New(mqtt, id)
	if err != nil {
		found.failf("%v", err)
		return found
	}
	ctx, cancel := context.WithTimeout(ctx, brokerTimeout)
	defer cancel()
	run, cut := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = session.Run(run) // its end is ours
	}()
	st := awaitSubscriptions(ctx, session, len(mqtt.URLs))
	if err := session.Close(ctx); err != nil {
		found.notef("disconnecting: %v", err)
	}
	cut()
	<-done

	if st.ConnectedSince.IsZero() {
		reason := st.LastReason
		if reason == "" {
			reason = "no answer within " + brokerTimeout.String()
		}
		found.failf("%s: %s", strings.Join(cfg.brokers(), ", "), reason)
		return found
	}
	g := st.Granted
	found.notef("connected to %s as %s", st.URL, id)
	found.notef("granted: QoS up to %d, keep alive %s, wildcards %t, shared subscriptions %t, retain %t",
		g.MaximumQoS, st.KeepAliveEffective, g.WildcardSubs, g.SharedSubs, g.Retain)
	for _, sub := range st.Subscriptions {
		filter := strings.Replace(sub.Filter, id, cfg.MQTT.ShareName.value, 1)
		if sub.OK {
			found.notef("subscription to %s is granted", filter)
		} else {
			found.failf("subscription to %s: %s", filter, sub.Text)
		}
	}
	return found
}

// awaitSubscriptions waits until every subscription has its answer, or no URL could be reached, and
// returns the status of that moment.
func awaitSubscriptions(ctx context.Context, session *ingest.Session, urls int) ingest.Status {
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	failures, last := 0, ""
	for {
		st := session.Status()
		switch {
		case st.State == ingest.StateSubscribed:
			return st
		case st.State == ingest.StateConnected && answered(st.Subscriptions):
			return st
		case st.State == ingest.StateBackoff && st.URL+st.LastReason != last:
			last = st.URL + st.LastReason
			if failures++; failures >= urls {
				return st
			}
		}
		select {
		case <-ctx.Done():
			return session.Status()
		case <-look.C:
		}
	}
}

func answered(subs []ingest.Subscription) bool {
	for _, sub := range subs {
		if !sub.OK && sub.ReasonCode == 0 && strings.Contains(sub.Text, "not answered") {
			return false
		}
	}
	return len(subs) > 0
}
