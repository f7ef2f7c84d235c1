package store

import (
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics measures the writers, the leases and the monitor of one process. A nil *Metrics measures
// nothing.
type Metrics struct {
	commitDuration prometheus.Histogram
	batchMessages  prometheus.Histogram
	latency        *histograms
	eventLag       *histograms // by the number of the route
	retries        *prometheus.CounterVec
	databaseUp     prometheus.Gauge
	sessionsOwned  prometheus.Gauge

	oldest  *prometheus.Desc
	mu      sync.Mutex
	writers map[*Writer]struct{}
}

// NewMetrics registers the metrics of the store with reg. It panics if they are registered already.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		commitDuration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "bridge_batch_commit_duration_seconds",
			Help:    "Time from the first attempt to the commit of a batch, retries included.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 18), // 0.5 ms to 65 s
		}),
		batchMessages: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "bridge_batch_messages",
			Help:    "Messages in a batch.",
			Buckets: prometheus.ExponentialBuckets(1, 2, 15), // 1 to 16384
		}),
		latency: newHistogram("bridge_ingest_latency_seconds", "Time from the receipt of a message to its commit.",
			prometheus.ExponentialBuckets(0.001, 2, 18)), // 1 ms to 131 s
		eventLag: newHistograms("bridge_event_lag_seconds",
			"Age of a message's event time at its commit; the clock of a device that runs ahead makes it negative.", "route",
			[]float64{0, 0.1, 1, 5, 15, 60, 300, 900, 3600, 21600, 86400, 604800}),
		retries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bridge_database_retries_total",
			Help: "Attempts to commit a batch that were repeated, by class of SQLSTATE or kind of failure.",
		}, []string{"class"}),
		databaseUp: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "bridge_database_up",
			Help: "1 while the database answers.",
		}),
		sessionsOwned: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "bridge_sessions_owned",
			Help: "MQTT sessions that this process holds.",
		}),
		oldest:  prometheus.NewDesc("bridge_oldest_unacknowledged_seconds", "Age of the oldest message of a session that is not committed.", []string{"session"}, nil),
		writers: map[*Writer]struct{}{},
	}
	reg.MustRegister(m.commitDuration, m.batchMessages, m.latency, m.eventLag, m.retries, m.databaseUp, m.sessionsOwned, (*oldestCollector)(m))
	return m
}

// oldestCollector asks the running writers at every scrape.
type oldestCollector Metrics

func (o *oldestCollector) Describe(ch chan<- *prometheus.Desc) { ch <- o.oldest }

func (o *oldestCollector) Collect(ch chan<- prometheus.Metric) {
	o.mu.Lock()
	writers := slices.Collect(maps.Keys(o.writers))
	o.mu.Unlock()
	// A session that is given up and taken again may have two writers for a moment.
	age := map[string]float64{}
	for _, w := range writers {
		age[w.session()] = max(age[w.session()], w.Status().OldestUnacknowledged.Seconds())
	}
	for session, seconds := range age {
		ch <- prometheus.MustNewConstMetric(o.oldest, prometheus.GaugeValue, seconds, session)
	}
}

func (m *Metrics) add(w *Writer) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.writers[w] = struct{}{}
}

func (m *Metrics) remove(w *Writer) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.writers, w)
}

func (m *Metrics) retried(class string) {
	if m != nil {
		m.retries.WithLabelValues(class).Inc()
	}
}

func (m *Metrics) setUp(up bool) {
	if m != nil {
		m.databaseUp.Set(float64(boolByte(up)))
	}
}

func (m *Metrics) setOwned(n int) {
	if m != nil {
		m.sessionsOwned.Set(float64(n))
	}
}

func (m *Metrics) committed(b *batch, now time.Time, took time.Duration) {
	if m == nil {
		return
	}
	m.commitDuration.Observe(took.Seconds())
	m.batchMessages.Observe(float64(len(b.entries)))
	m.latency.mu.Lock()
	latency := m.latency.at(0, "")
	for i := range b.entries {
		latency.observe(m.latency.bounds, now.Sub(b.entries[i].Message.ReceivedAt).Seconds())
	}
	m.latency.mu.Unlock()

	micros := now.UnixMicro() - postgresEpoch
	m.eventLag.mu.Lock()
	defer m.eventLag.mu.Unlock()
	for i := range b.groups {
		g := &b.groups[i]
		lag := m.eventLag.at(g.route.Number, g.route.Name)
		for j := range g.units {
			lag.observe(m.eventLag.bounds, float64(micros-g.units[j].time)/1e6)
		}
	}
}
