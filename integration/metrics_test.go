//go:build unix

package integration

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/mqttpg/bridge/integration/provider"
	dto "github.com/prometheus/client_model/go"
)

// metrics is one scrape.
type metrics map[string]*dto.MetricFamily

// sum adds up the samples of a family that carry the given labels ("route", "telemetry", …). A
// family that is not there counts as 0.
func (m metrics) sum(family string, labels ...string) float64 {
	total := 0.0
	for _, sample := range m[family].GetMetric() {
		if hasLabels(sample, labels) {
			total += sample.GetCounter().GetValue() + sample.GetGauge().GetValue()
		}
	}
	return total
}

// labelValues returns the values of a label within a family.
func (m metrics) labelValues(family, label string) []string {
	var values []string
	for _, sample := range m[family].GetMetric() {
		for _, pair := range sample.GetLabel() {
			if pair.GetName() == label {
				values = append(values, pair.GetValue())
			}
		}
	}
	return values
}

func hasLabels(sample *dto.Metric, labels []string) bool {
	for i := 0; i+1 < len(labels); i += 2 {
		found := false
		for _, pair := range sample.GetLabel() {
			found = found || pair.GetName() == labels[i] && pair.GetValue() == labels[i+1]
		}
		if !found {
			return false
		}
	}
	return true
}

// routeCounts are the terms of the conservation law for one route.
type routeCounts struct {
	received, written, duplicate, deadLettered, skipped, inFlight float64
}

func (c routeCounts) String() string {
	return fmt.Sprintf("received %v, written %v, duplicate %v, dead-lettered %v, skipped %v, in flight %v",
		c.received, c.written, c.duplicate, c.deadLettered, c.skipped, c.inFlight)
}

// route returns the counts of a route.
func (m metrics) route(name string) routeCounts {
	return routeCounts{
		received:     m.sum("bridge_messages_received_total", "route", name),
		written:      m.sum("bridge_messages_written_total", "route", name),
		duplicate:    m.sum("bridge_messages_duplicate_total", "route", name),
		deadLettered: m.sum("bridge_messages_dead_lettered_total", "route", name),
		skipped:      m.sum("bridge_messages_skipped_total", "route", name),
		inFlight:     m.sum("bridge_messages_in_flight", "route", name),
	}
}

// routes names the routes that the scrape counts messages for.
func (m metrics) routes() []string { return m.labelValues("bridge_messages_received_total", "route") }

// broken names the first route for which messages were made or lost between receipt and outcome,
// or is empty.
func (m metrics) broken() string {
	for _, name := range m.routes() {
		c := m.route(name)
		if c.received != c.written+c.duplicate+c.deadLettered+c.skipped+c.inFlight {
			return fmt.Sprintf("route %s: %s", name, c)
		}
	}
	return ""
}

// scrape reads /metrics and fails the test if that scrape breaks the conservation law.
func scrape(t *testing.T, bridge *provider.Bridge) metrics {
	t.Helper()
	m, err := tryScrape(t.Context(), bridge)
	must(t, err)
	if len(m.routes()) == 0 {
		t.Fatal("scrape: no route counts any message")
	}
	if broken := m.broken(); broken != "" {
		t.Errorf("the conservation law is broken: %s", broken)
	}
	return m
}

func tryScrape(ctx context.Context, bridge *provider.Bridge) (metrics, error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	return bridge.Metrics(ctx)
}

// watchLaw scrapes until the test ends and fails it when any scrape breaks the conservation law:
// it holds at every instant, not only when everything is over.
func watchLaw(t *testing.T, bridge *provider.Bridge) {
	t.Helper()
	stopped := make(chan struct{})
	ctx, stop := context.WithCancel(context.Background())
	go func() {
		defer close(stopped)
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(100 * time.Millisecond):
			}
			m, err := tryScrape(ctx, bridge)
			if err != nil {
				continue // not up: that is the scenario's business
			}
			if broken := m.broken(); broken != "" {
				t.Errorf("the conservation law is broken in mid-stream: %s", broken)
				return
			}
		}
	}()
	t.Cleanup(func() { stop(); <-stopped })
}
