package main

import (
	"context"
	"crypto/rand"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mqttpg/bridge/health"
	"github.com/mqttpg/bridge/ingest"
	"go.uber.org/zap"
)

// watch is what reads the broker's own figures. connected says which broker to ask.
func (cfg *config) watch(log *zap.Logger, connected func() string) *ingest.Watch {
	return ingest.NewWatch(cfg.ingest(log), cfg.clientIDPrefix()+"-watch-"+strings.ToLower(rand.Text()[:12]), connected)
}

// connectedTo is the broker that the sessions of this process are connected to; empty: none.
func (s *service) connectedTo() string {
	for _, p := range s.owned() {
		if st := p.session.Status(); st.State == ingest.StateConnected || st.State == ingest.StateSubscribed {
			return st.URL
		}
	}
	return ""
}

// measureEvery is how often the rates of the sessions are measured.
const measureEvery = time.Second

// measure keeps the rates, and the gauge that is made of them, until ctx is done.
func (s *service) measure(ctx context.Context) {
	tick := time.NewTicker(measureEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			pipelines, queue := s.owned(), math.Inf(1)
			if limit := s.cfg.Broker.QueueLimit.value; limit != nil && *limit > 0 {
				queue = float64(*limit)
			}
			for _, p := range pipelines {
				st, w := p.session.Status(), p.writer.Status()
				flows := st.State == ingest.StateSubscribed && !st.Paused && w.InFlight < s.cfg.MQTT.ReceiveMaximum.value
				p.arrivals.observe(now, p.queueable.Load(), flow{flows, st.SessionPresent, queue})
			}
			facts := s.outageFacts(pipelines, s.watchStatus())
			if _, seconds := facts.outage(); math.IsNaN(seconds) {
				s.outage.Reset()
			} else {
				s.outage.WithLabelValues().Set(seconds)
			}
		}
	}
}

func (s *service) watchStatus() ingest.WatchStatus {
	if s.watch == nil {
		return ingest.WatchStatus{State: "off"}
	}
	return s.watch.Status()
}

func (s *service) outageFacts(pipelines []*pipeline, st ingest.WatchStatus) outageFacts {
	f := outageFacts{
		queueLimit: s.cfg.Broker.QueueLimit.value, mosquitto: st.Software.Mosquitto,
		window: s.cfg.MQTT.ReceiveMaximum.value, qos: byte(s.cfg.MQTT.QoS.value),
	}
	for _, p := range pipelines {
		if r, measured := p.arrivals.perSecond(); measured {
			f.rates = append(f.rates, r)
		}
	}
	return f
}

// delivery gathers the self-check.
func (s *service) delivery(pipelines []*pipeline) health.Delivery {
	st := s.watchStatus()
	d := health.Delivery{
		BrokerVersion:       st.Software.String(),
		Watch:               health.Watch{State: string(st.State), Reason: st.Reason, ClientID: st.ClientID},
		MessagesDroppedSeen: st.DroppedSeen, LastDrop: health.Instant{Time: st.LastDrop},
		LostSessions: s.lost.list(), Findings: []health.Finding{},
	}
	if st.DroppedKnown {
		d.MessagesDropped = &st.Dropped
	}
	facts := s.outageFacts(pipelines, st)
	d.Outage, _ = facts.outage()
	var found []ingest.Finding
	for _, p := range pipelines {
		found = append(found, p.session.Status().Findings...)
	}
	for _, f := range inOrder(append(found, ingest.CheckSoftware(&s.mqtt, st.Software)...)) {
		d.Findings = append(d.Findings, health.Finding{Severity: string(f.Severity), What: f.What, Consequence: f.Consequence, Remedy: f.Remedy})
	}
	return d
}

// lostSessions remembers which sessions the broker lost while this process owned them, whoever owns them
// now. The zero value is ready. Safe for concurrent use.
type lostSessions struct {
	mu    sync.Mutex
	known map[string]health.LostSession // by client id
}

func (l *lostSessions) add(clientID string, at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.known == nil {
		l.known = map[string]health.LostSession{}
	}
	l.known[clientID] = health.LostSession{ClientID: clientID, Times: l.known[clientID].Times + 1, Last: health.Instant{Time: at}}
}

// list is by client id.
func (l *lostSessions) list() []health.LostSession {
	l.mu.Lock()
	defer l.mu.Unlock()
	list := make([]health.LostSession, 0, len(l.known))
	for _, clientID := range slices.Sorted(maps.Keys(l.known)) {
		list = append(list, l.known[clientID])
	}
	return list
}

// inOrder puts the gravest findings first, each once.
func inOrder(found []ingest.Finding) []ingest.Finding {
	var list []ingest.Finding
	for _, severity := range []ingest.Severity{ingest.SeverityError, ingest.SeverityWarning, ingest.SeverityInfo} {
		for _, f := range found {
			if f.Severity == severity && !slices.Contains(list, f) {
				list = append(list, f)
			}
		}
	}
	return list
}
