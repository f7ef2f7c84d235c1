package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/mqttpg/bridge/ingest"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
)

// urlTimeout is how long a broker has for CONNACK and SUBACK at each of its addresses, one of which may be dead.
const urlTimeout = 15 * time.Second

func (cfg *config) brokerTimeout() time.Duration {
	return urlTimeout * time.Duration(max(len(cfg.brokers()), 1))
}

// watchTimeout is how long the broker has to tell its version and its count of dropped messages: those
// that do so at all have both at hand.
const watchTimeout = 2 * time.Second

// checkBroker connects and subscribes as a session would, but under a client id and a Share Name that
// are drawn at random, with sessions that end with the connection: the real group loses nothing to it,
// and nothing of it stays with the broker.
func (cfg *config) checkBroker(ctx context.Context) findings {
	var found findings
	ctx, cancel := context.WithTimeout(ctx, cfg.brokerTimeout())
	defer cancel()
	asked := cfg.ingest(zap.NewNop())
	mqtt, id := cfg.visitor()

	// What the broker grants to a lasting session is asked without a subscription: should the command be
	// killed, such a session collects nothing. The subscriptions are tried in one that does not last.
	lasting := mqtt
	lasting.Filters, lasting.Stale = nil, mqtt.Subscriptions()
	st, err := tryBroker(ctx, lasting, id)
	if err == nil && !st.ConnectedSince.IsZero() {
		granted := st.Granted
		mqtt.SessionExpiry = 0
		st, err = tryBroker(ctx, mqtt, id)
		st.Granted.SessionExpiry = granted.SessionExpiry
	}
	if err != nil {
		found.failf("%v", err)
		return found
	}
	if st.ConnectedSince.IsZero() {
		found.failf("%v", cfg.unreached(st))
		return found
	}
	g := st.Granted
	found.notef("connected to %s as %s", st.URL, id)
	found.notef("granted: QoS up to %d, keep alive %s, session expiry %s, wildcards %t, shared subscriptions %t, subscription identifiers %t, retain %t",
		g.MaximumQoS, st.KeepAliveEffective, g.SessionExpiry, g.WildcardSubs, g.SharedSubs, g.SubscriptionIDs, g.Retain)
	for i := range st.Subscriptions {
		sub := &st.Subscriptions[i]
		sub.Filter = strings.Replace(sub.Filter, id, asked.ShareName, 1)
		if sub.OK {
			found.notef("subscription to %s is granted", sub.Filter)
		}
	}
	software := cfg.checkSoftware(ctx, st.URL, &found)
	for _, f := range inOrder(append(ingest.CheckGrants(&asked, g, st.Subscriptions), ingest.CheckSoftware(&asked, software)...)) {
		text := f.What + ": " + f.Consequence
		if f.Remedy != "" {
			text += "; " + f.Remedy
		}
		found = append(found, finding{text, map[ingest.Severity]findingKind{
			ingest.SeverityError: failed, ingest.SeverityWarning: warned, ingest.SeverityInfo: noted,
		}[f.Severity]})
	}
	found.notef("%s", cfg.queueFor(software.Mosquitto))
	return found
}

// visitor is a client as a session is one, but under a client id and a Share Name that are drawn at random.
func (cfg *config) visitor() (mqtt ingest.Config, id string) {
	id = cfg.clientIDPrefix() + "-check-" + strings.ToLower(rand.Text()[:12])
	mqtt = cfg.ingest(zap.NewNop())
	mqtt.StatusTopic = ""
	if mqtt.ShareName != "" {
		mqtt.ShareName = id
	}
	budget := ingest.NewBudget(int64(cfg.MaxInflightBytes.value))
	mqtt.Budget, mqtt.Metrics = budget, ingest.NewMetrics(prometheus.NewRegistry())
	mqtt.Deliver = func(_ context.Context, d *ingest.Delivery) { budget.Release(int64(d.Size)) }
	return mqtt, id
}

// unreached is why no connection was made.
func (cfg *config) unreached(st ingest.Status) error {
	reason := st.LastReason
	if reason == "" {
		reason = "no answer within " + cfg.brokerTimeout().String()
	}
	return fmt.Errorf("%s: %s", strings.Join(cfg.brokers(), ", "), reason)
}

// reachBroker connects to the broker as a visitor that subscribes to nothing.
func (cfg *config) reachBroker(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, cfg.brokerTimeout())
	defer cancel()
	mqtt, id := cfg.visitor()
	mqtt.Filters, mqtt.Stale, mqtt.SessionExpiry = nil, mqtt.Subscriptions(), 0
	st, err := tryBroker(ctx, mqtt, id)
	if err == nil && st.ConnectedSince.IsZero() {
		err = cfg.unreached(st)
	}
	return err
}

// tryBroker runs a session until every subscription has its answer, and returns its status of that
// moment. The broker forgets it.
func tryBroker(ctx context.Context, mqtt ingest.Config, id string) (ingest.Status, error) {
	session, err := ingest.New(mqtt, id)
	if err != nil {
		return ingest.Status{}, err
	}
	run, cut := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = session.Run(run) // its end is ours
	}()
	st := awaitSubscriptions(ctx, session, len(mqtt.URLs))
	_ = session.End(ctx) // who cannot be told goodbye forgets us all the same
	cut()
	<-done
	return st, nil
}

// checkSoftware asks what the broker tells of itself.
func (cfg *config) checkSoftware(ctx context.Context, url string, found *findings) ingest.Software {
	if cfg.MQTT.Watch.value == "off" {
		found.notef("version unknown: BRIDGE_MQTT_WATCH is off")
		return ingest.Software{}
	}
	ctx, cancel := context.WithTimeout(ctx, watchTimeout)
	defer cancel()
	watch := cfg.watch(zap.NewNop(), func() string { return url })
	done := make(chan struct{})
	go func() {
		defer close(done)
		watch.Run(ctx)
	}()
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	st := watch.Status()
	for ctx.Err() == nil && st.Reason == "" && (st.Software.Text == "" || st.Software.Mosquitto && !st.DroppedKnown) {
		select {
		case <-ctx.Done():
		case <-look.C:
		}
		st = watch.Status()
	}
	cancel()
	<-done
	switch {
	case st.Software.Text != "":
		found.notef("version: %s", st.Software)
	case st.Reason != "":
		found.notef("version unknown: %s", st.Reason)
	default:
		found.notef("version unknown: the broker tells this client nothing below $SYS")
	}
	if st.DroppedKnown {
		found.notef("messages dropped since the broker started, for all of its clients: %d", st.Dropped)
	} else {
		found.notef("messages dropped: unknown")
	}
	return st.Software
}

// queueFor says how long an outage may last. A check has no rate of its own: the running bridge has.
func (cfg *config) queueFor(mosquitto bool) string {
	f := outageFacts{mosquitto: mosquitto, window: cfg.MQTT.ReceiveMaximum.value}
	const example = 100 // messages per second
	holds := func(limit int) string {
		n := f.holds(limit) * cfg.MQTT.Sessions.value
		return fmt.Sprintf("%d messages in all, %s at %d messages/s", n, approximately(float64(n)/example), example)
	}
	limit := cfg.Broker.QueueLimit.value
	switch {
	case cfg.MQTT.QoS.value == 0:
		return "in a database outage nothing is queued: BRIDGE_MQTT_QOS is 0"
	case limit == nil && mosquitto:
		return fmt.Sprintf("how much is queued in a database outage is unknown: BRIDGE_BROKER_QUEUE_LIMIT is not set; with Mosquitto's default of %d it would be %s", mosquittoQueue, holds(mosquittoQueue))
	case limit == nil:
		return "how much is queued in a database outage is unknown: BRIDGE_BROKER_QUEUE_LIMIT is not set"
	case *limit == 0:
		return "in a database outage messages are queued until the broker's memory or disk is full"
	}
	return "queued in a database outage: " + holds(*limit)
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
	return len(subs) > 0 && !slices.ContainsFunc(subs, func(sub ingest.Subscription) bool { return !sub.Answered() })
}
