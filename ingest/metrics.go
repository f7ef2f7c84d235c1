package ingest

import (
	"github.com/prometheus/client_golang/prometheus"
)

// Metrics are the counters and gauges of all sessions of a process. The session label is the client
// id: sessions are few and fixed.
type Metrics struct {
	connected   *prometheus.GaugeVec
	rtt         *prometheus.GaugeVec
	reconnects  *prometheus.CounterVec
	sessionLost *prometheus.CounterVec
	dropped     *prometheus.CounterVec
}

// NewMetrics registers the metrics with reg. It panics if they are registered already.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		connected: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "bridge_mqtt_connected",
			Help: "Whether the session is connected to a broker (1) or not (0).",
		}, []string{"session"}),
		rtt: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "bridge_mqtt_ping_rtt_seconds",
			Help: "Time from the last answered PINGREQ to its PINGRESP.",
		}, []string{"session"}),
		reconnects: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bridge_mqtt_reconnects_total",
			Help: "Connections after the first, by what ended the one before.",
		}, []string{"session", "reason"}),
		sessionLost: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bridge_mqtt_session_lost_total",
			Help: "Times the broker no longer knew the session: what it held for it is lost.",
		}, []string{"session"}),
		dropped: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bridge_messages_dropped_total",
			Help: "QoS 0 messages thrown away, by reason.",
		}, []string{"reason"}),
	}
	reg.MustRegister(m.connected, m.rtt, m.reconnects, m.sessionLost, m.dropped)
	m.dropped.WithLabelValues(dropBudget) // so that the series exists before the first loss
	return m
}

// dropBudget: the byte budget was exhausted when a QoS 0 message came.
const dropBudget = "budget"

// begin makes the series of a session, so that its counters are seen to rise from 0.
func (m *Metrics) begin(session string) {
	m.connected.WithLabelValues(session).Set(0)
	m.sessionLost.WithLabelValues(session)
	for _, reason := range lostReasons {
		m.reconnects.WithLabelValues(session, reason)
	}
}

// end removes the gauges of a session that another process may own from now on.
func (m *Metrics) end(session string) {
	m.connected.DeleteLabelValues(session)
	m.rtt.DeleteLabelValues(session)
}
