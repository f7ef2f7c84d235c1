package main

import (
	"slices"
	"strings"
	"time"

	"github.com/mqttpg/bridge/health"
	"github.com/mqttpg/bridge/ingest"
	"go.uber.org/zap"
)

func (s *service) healthServer() *health.Server {
	v, _ := buildInfo()
	return &health.Server{
		Loops: s.loops, Report: s.report, Gatherer: s.registry, Version: v, Started: s.started,
		Log: s.log.Named("http").WithOptions(zap.IncreaseLevel(zap.WarnLevel)),
	}
}

// owned lists the pipelines by the index of their session.
func (s *service) owned() []*pipeline {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]*pipeline, 0, len(s.pipelines))
	for _, p := range s.pipelines {
		list = append(list, p)
	}
	slices.SortFunc(list, func(a, b *pipeline) int { return a.lease.Index - b.lease.Index })
	return list
}

// loops are the process's own loops, whose turning is liveness.
func (s *service) loops() []health.Loop {
	asked := s.started
	for _, t := range []time.Time{s.monitor.Status().LastPing, s.monitor.Status().LastErrorAt} {
		if t.After(asked) {
			asked = t
		}
	}
	loops := []health.Loop{{Name: "database monitor", LastTurn: asked}}
	if turned := s.leases.Status().LastTurn; !turned.IsZero() {
		loops = append(loops, health.Loop{Name: "leases", LastTurn: turned})
	}
	for _, p := range s.owned() {
		loops = append(loops, health.Loop{Name: "writer " + p.lease.ClientID, LastTurn: p.writer.Status().LastTurn})
	}
	return loops
}

// report gathers the facts from where they are kept.
func (s *service) report() health.Report {
	s.mu.Lock()
	state, prepared, trouble, standing := s.state, s.prepared, s.trouble, s.standing
	s.mu.Unlock()
	leases := s.leases.Status()
	if state == health.Running && leases.LastHeartbeat.IsZero() {
		state = health.Starting
	}
	r := health.Report{
		Broker: []health.Session{},
		Routes: map[string]health.Route{},
		Share: health.Share{
			Name: s.cfg.MQTT.ShareName.value, InUse: leases.InUse, Replicas: leases.Replicas,
			Retiring: append([]int{}, leases.Retiring...), Drained: append([]int{}, leases.Drained...),
		},
		Process: health.Process{State: state, StandsBack: standing},
	}
	r.Process.Memory.InFlightBytes, r.Process.Memory.InFlightBytesLimit = s.budget.Used(), s.budget.Limit()

	db := s.monitor.Status()
	r.Database = health.Database{
		State: "unknown", Prepared: prepared, MigrationVersion: db.MigrationVersion,
		Pool: health.Pool{Total: db.TotalConns, Idle: db.IdleConns, InUse: db.AcquiredConns, Max: db.MaxConns},
	}
	if !db.LastPing.IsZero() {
		r.Database.PingMS = &db.PingMS
	}
	switch {
	case db.Up:
		r.Database.State = "up"
		r.Database.LastError = trouble
		if prepared && leases.LastError != "" {
			r.Database.LastError = "leases: " + leases.LastError
		}
	case !db.Since.IsZero():
		r.Database.State, r.Database.LastError = "down", db.LastError
	default:
		r.Database.LastError = trouble
	}

	failing, warnings, parking := s.tables.Failing(), s.tables.Warnings(), s.tables.Parking()
	pipelines := s.owned()
	for _, lease := range s.leases.Owned() {
		// A session that was just taken must not pass for a hot standby's none.
		if !slices.ContainsFunc(pipelines, func(p *pipeline) bool { return p.lease.Index == lease.Index }) {
			r.Broker = append(r.Broker, sessionReport(ingest.Status{State: ingest.StateConnecting, ClientID: lease.ClientID}))
		}
	}
	for _, p := range pipelines {
		session := sessionReport(p.session.Status())
		w := p.writer.Status()
		session.ReceiveMaximum = uint16(s.cfg.MQTT.ReceiveMaximum.value)
		session.InFlight, session.OldestUnacknowledgedS = w.InFlight, w.OldestUnacknowledged.Seconds()
		r.Broker = append(r.Broker, session)
		if w.LastCommit.After(r.Database.LastCommit.Time) {
			r.Database.LastCommit.Time = w.LastCommit
		}
		if w.Retrying && db.Up && failing[w.LastErrorRoute] == "" { // that is told with the route
			r.Database.LastError = w.LastError
		}
	}

	r.Delivery = s.delivery(pipelines)
	for _, c := range s.counters.Snapshot() {
		r.Routes[c.Route] = health.Route{
			Received: c.Received, Written: c.Written, Duplicate: c.Duplicate, DeadLettered: sum(c.DeadLettered),
			Skipped: sum(c.Skipped), InFlight: c.InFlight, Failing: failing[c.Route],
			Parked: parking[c.Route].Parked, Waiting: parking[c.Route].Waiting, Replayed: parking[c.Route].Replayed,
			Warning: strings.Join(warnings[c.Route], "; "),
		}
	}
	return r
}

// sessionReport tells a session's status in the words of the health document.
func sessionReport(st ingest.Status) health.Session {
	session := health.Session{
		State: string(st.State), URL: st.URL, ClientID: st.ClientID,
		ConnectedSince: health.Instant{Time: st.ConnectedSince}, SessionPresent: st.SessionPresent,
		KeepAliveEffectiveS: st.KeepAliveEffective.Seconds(),
		LastPingReq:         health.Instant{Time: st.LastPingReq}, LastPingResp: health.Instant{Time: st.LastPingResp},
		PingOutstanding: st.PingOutstanding, LastReceived: health.Instant{Time: st.LastReceived},
		Reconnects: st.Reconnects, LastReasonCode: st.LastReasonCode, LastReason: strings.TrimSpace(st.LastReason), Contested: st.Contested, Paused: st.Paused,
		Granted: health.Granted{
			SessionExpiryS: uint32(st.Granted.SessionExpiry / time.Second), BrokerReceiveMaximum: st.Granted.ReceiveMaximum,
			MaximumQoS: st.Granted.MaximumQoS, RetainAvailable: st.Granted.Retain,
			WildcardSubscriptionAvailable: st.Granted.WildcardSubs, SubscriptionIdentifiersAvailable: st.Granted.SubscriptionIDs,
			SharedSubscriptionAvailable: st.Granted.SharedSubs,
		},
		Subscriptions: []health.Subscription{},
	}
	if !st.LastPingResp.IsZero() {
		ms := float64(st.RTT.Microseconds()) / 1000
		session.RTTMS = &ms
	}
	for _, sub := range st.Subscriptions {
		session.Subscriptions = append(session.Subscriptions, health.Subscription{Filter: sub.Filter, ReasonCode: sub.ReasonCode, OK: sub.OK, Reason: sub.Text})
	}
	return session
}

func sum[K comparable](counts map[K]uint64) (total uint64) {
	for _, n := range counts {
		total += n
	}
	return total
}
