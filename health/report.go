package health

import (
	"encoding/json"
	"fmt"
	"time"
)

// Report is what /health shows. The server's Report function gives the facts; the server itself
// adds Status, Reasons and the figures of the process that the runtime knows.
type Report struct {
	Status   Status           `json:"status"`
	Reasons  []string         `json:"reasons"` // why Status is not ok, most important first
	Broker   []Session        `json:"broker"`  // the sessions this process owns; empty on a hot standby
	Share    Share            `json:"share"`
	Delivery Delivery         `json:"delivery"`
	Database Database         `json:"database"`
	Routes   map[string]Route `json:"routes"`
	Process  Process          `json:"process"`
}

// Status sums a report up.
type Status string

// The statuses.
const (
	OK       Status = "ok"       // ready, and nothing to mend
	Degraded Status = "degraded" // messages flow, but somebody should look
	Down     Status = "down"     // no message can be written
)

// Session is one leased broker session.
type Session struct {
	State                 string         `json:"state"` // connecting, connected, subscribed, backoff, closed
	URL                   string         `json:"url"`   // the broker last tried, without credentials
	ClientID              string         `json:"client_id"`
	ConnectedSince        Instant        `json:"connected_since"`
	SessionPresent        bool           `json:"session_present"`
	KeepAliveEffectiveS   float64        `json:"keep_alive_effective_s"` // the shorter of ours and Server Keep Alive [MQTT-3.1.2-21]; 0 = off
	LastPingReq           Instant        `json:"last_pingreq"`
	LastPingResp          Instant        `json:"last_pingresp"`
	RTTMS                 *float64       `json:"rtt_ms"` // PINGREQ to PINGRESP; null before the first
	PingOutstanding       bool           `json:"ping_outstanding"`
	LastReceived          Instant        `json:"last_received"` // the last bytes of any kind
	Reconnects            uint64         `json:"reconnects"`
	LastReasonCode        byte           `json:"last_reason_code"`
	LastReason            string         `json:"last_reason"`
	Contested             bool           `json:"contested"` // another client probably uses the client id, or did within the last two minutes
	InFlight              int            `json:"in_flight"` // deliveries that wait for their commit
	OldestUnacknowledgedS float64        `json:"oldest_unacknowledged_s"`
	Paused                bool           `json:"paused"`          // reading waits for BRIDGE_MAX_INFLIGHT_BYTES
	ReceiveMaximum        uint16         `json:"receive_maximum"` // BRIDGE_MQTT_RECEIVE_MAXIMUM: what the broker may send before it waits for acknowledgements
	Granted               Granted        `json:"granted"`
	Subscriptions         []Subscription `json:"subscriptions"`
}

// Share is how the sessions are shared out among the replicas, as this process last saw it.
type Share struct {
	Name     string `json:"name"`
	InUse    int    `json:"in_use"`   // sessions that are shared out
	Replicas int    `json:"replicas"` // live ones, this one included
	Retiring []int  `json:"retiring"` // sessions that are being drained: beyond BRIDGE_MQTT_SESSIONS, or taken out of use
	Drained  []int  `json:"drained"`  // sessions out of use until bridge sessions drain --undo
}

// Granted is what the broker granted in its CONNACK.
type Granted struct {
	SessionExpiryS                   uint32 `json:"session_expiry_s"`
	BrokerReceiveMaximum             uint16 `json:"broker_receive_maximum"` // what the broker takes from the bridge at a time, which publishes nothing but its status
	MaximumQoS                       byte   `json:"maximum_qos"`
	RetainAvailable                  bool   `json:"retain_available"`
	WildcardSubscriptionAvailable    bool   `json:"wildcard_subscription_available"`
	SubscriptionIdentifiersAvailable bool   `json:"subscription_identifiers_available"`
	SharedSubscriptionAvailable      bool   `json:"shared_subscription_available"`
}

// Subscription is one topic filter with the Reason Code of its SUBACK.
type Subscription struct {
	Filter     string `json:"filter"`
	ReasonCode byte   `json:"reason_code"`
	OK         bool   `json:"ok"`     // granted with the QoS that was asked for
	Reason     string `json:"reason"` // what is wrong; empty when OK
}

// Delivery is the self-check: what the broker grants and is known for, and what that means.
type Delivery struct {
	BrokerVersion string `json:"broker_version"` // in the broker's words, or unknown
	Watch         Watch  `json:"watch"`
	// MessagesDropped is the broker's own count since it started, for all of its clients together; null
	// while it does not tell. MessagesDroppedSeen is by how much it rose while this process looked on.
	MessagesDropped     *uint64 `json:"messages_dropped"`
	MessagesDroppedSeen uint64  `json:"messages_dropped_seen"`
	LastDrop            Instant `json:"last_drop"`
	Outage              Outage  `json:"outage"`
	// LostSessions are those that the broker had forgotten, with what it held for them, when this process
	// came to connect.
	LostSessions []LostSession `json:"lost_sessions"`
	Findings     []Finding     `json:"findings"` // the gravest first
}

// LostSession is a session that the broker lost.
type LostSession struct {
	ClientID string  `json:"client_id"`
	Times    uint64  `json:"times"` // since the process started
	Last     Instant `json:"last"`
}

// Watch is the connection that reads what the broker tells of itself below $SYS.
type Watch struct {
	State    string `json:"state"`     // waiting, asking, reading, unavailable, or off
	Reason   string `json:"reason"`    // why nothing can be read; empty while all is well
	ClientID string `json:"client_id"` // empty when off
}

// Outage is how long a database outage the broker's queue survives at the present rate.
type Outage struct {
	ReceivedPerS *float64 `json:"received_per_s"` // QoS 1 and 2, all sessions of this process, over about a minute; null while unknown
	QueueLimit   *int     `json:"queue_limit"`    // BRIDGE_BROKER_QUEUE_LIMIT; null = not set, 0 = no limit
	Seconds      *float64 `json:"seconds"`        // null while unknown or without limit
	Text         string   `json:"text"`           // the same for people
}

// Finding is one line of the self-check.
type Finding struct {
	Severity    string `json:"severity"` // error, warning or info
	What        string `json:"what"`
	Consequence string `json:"consequence"`
	Remedy      string `json:"remedy"` // empty where nothing is to be done
}

// Database is the link to PostgreSQL.
type Database struct {
	State            string   `json:"state"` // up, down, or unknown before the first answer
	PingMS           *float64 `json:"ping_ms"`
	Pool             Pool     `json:"pool"`
	LastCommit       Instant  `json:"last_commit"` // of a batch
	LastError        string   `json:"last_error"`  // empty while all is well
	MigrationVersion int      `json:"migration_version"`
	Prepared         bool     `json:"prepared"` // migrations are done and the tables were looked at
}

// Pool is the connection pool.
type Pool struct {
	Total int32 `json:"total"`
	Idle  int32 `json:"idle"`
	InUse int32 `json:"in_use"`
	Max   int32 `json:"max"`
}

// Route holds the conservation law of one route:
// received = written + duplicate + dead_lettered + skipped + in_flight.
type Route struct {
	Received     uint64 `json:"received"`
	Written      uint64 `json:"written"`
	Duplicate    uint64 `json:"duplicate"`
	DeadLettered uint64 `json:"dead_lettered"`
	Skipped      uint64 `json:"skipped"`
	InFlight     uint64 `json:"in_flight"`
	Parked       bool   `json:"parked"`         // new messages become dead letters, until the table can be written again
	Waiting      uint64 `json:"parked_waiting"` // parked dead letters of all replicas that are not replayed yet, counted up to 10,000
	Replayed     uint64 `json:"replayed"`       // parked dead letters that this process has replayed by itself
	Failing      string `json:"failing"`        // why the route's table cannot be written; empty when it can
	Warning      string `json:"warning"`        // what an operator should know of a table that is written all the same; no reason to be degraded
}

// Process is the process itself.
type Process struct {
	Version    string  `json:"version"`
	State      string  `json:"state"`       // starting, running or stopping
	StandsBack string  `json:"stands_back"` // why it takes no session from the other replicas; empty: it does
	UptimeS    float64 `json:"uptime_s"`
	Goroutines int     `json:"goroutines"`
	Memory     Memory  `json:"memory"`
}

// The states of a process.
const (
	Starting = "starting" // until the database is prepared and sessions have been shared out once, and while it stands back
	Running  = "running"
	Stopping = "stopping" // draining after SIGTERM
)

// Memory is the process's memory in bytes.
type Memory struct {
	TotalBytes         uint64 `json:"total_bytes"` // obtained from the operating system
	HeapBytes          uint64 `json:"heap_bytes"`  // live and not yet swept objects
	InFlightBytes      int64  `json:"in_flight_bytes"`
	InFlightBytesLimit int64  `json:"in_flight_bytes_limit"` // BRIDGE_MAX_INFLIGHT_BYTES
}

// Instant is a point in time, null in JSON while it is zero.
type Instant struct{ time.Time }

// MarshalJSON writes RFC 3339 in UTC with milliseconds.
func (t Instant) MarshalJSON() ([]byte, error) {
	if t.IsZero() {
		return []byte("null"), nil
	}
	return json.Marshal(t.UTC().Format("2006-01-02T15:04:05.000Z"))
}

// check is one condition of readiness.
type check struct {
	name   string
	reason string // why it does not hold; empty when it does
}

// checks lists the conditions of readiness. A hot standby owns no session, so it has none to check.
func (r *Report) checks() []check {
	checks := []check{{name: "process"}, {name: "database"}, {name: "migrations"}}
	switch {
	case r.Process.State == Stopping:
		checks[0].reason = "shutting down"
	case r.Process.StandsBack != "":
		checks[0].reason = "stands back, for other replicas do the work: " + r.Process.StandsBack
	case r.Process.State == Starting && r.Database.Prepared:
		// Without this a process would pass for a hot standby until it has looked for sessions.
		checks[0].reason = "has not looked for sessions yet"
	}
	if r.Database.State != "up" {
		checks[1].reason = orElse(r.Database.LastError, "has not answered yet")
	}
	if !r.Database.Prepared {
		checks[2].reason = "not done yet"
		if r.Database.State == "up" && r.Database.LastError != "" {
			checks[2].reason += ": " + r.Database.LastError
		}
	}
	for _, s := range r.Broker {
		checks = append(checks, check{"broker " + s.ClientID, s.unready()})
	}
	return checks
}

// unready says why the session is not connected and subscribed.
func (s *Session) unready() string {
	if s.State == "subscribed" {
		return ""
	}
	for _, sub := range s.Subscriptions {
		if !sub.OK && s.State == "connected" {
			return fmt.Sprintf("subscription to %s: %s", sub.Filter, sub.Reason)
		}
	}
	if s.LastReason != "" {
		return s.State + ": " + s.LastReason
	}
	return s.State
}

// The ages from which on a report is degraded although every condition of readiness holds.
const (
	// staleAfter, in keep alive intervals: a live broker answers a PINGREQ within one of them and
	// itself gives a silent client up after one and a half [MQTT-3.1.2-22].
	staleAfter = 1.5
	// unacknowledgedAfter is far beyond any commit, and well before people ask where their data is.
	unacknowledgedAfter = 60 * time.Second
	// lossWithin is how long a loss at the broker stays a reason: long enough for somebody to look.
	lossWithin = 15 * time.Minute
)

// judge fills in Status and Reasons. Down means that no message can be written: the database or
// every session is away.
func (r *Report) judge(now time.Time) {
	r.Status, r.Reasons = OK, []string{}
	subscribed := 0
	for _, c := range r.checks() {
		if c.reason != "" {
			r.Status = Degraded
			r.Reasons = append(r.Reasons, c.name+": "+c.reason)
		}
	}
	if r.Database.State == "up" && r.Database.Prepared && r.Database.LastError != "" {
		r.Reasons = append(r.Reasons, "database: "+r.Database.LastError)
	}
	if r.Share.Replicas > 0 && r.Share.InUse == 0 {
		r.Reasons = append(r.Reasons, "share "+r.Share.Name+": every session is out of use, so nobody receives messages; bridge sessions drain --undo puts one back")
	}
	for _, s := range r.Broker {
		if s.State == "subscribed" {
			subscribed++
			r.Reasons = append(r.Reasons, s.complaints(now)...)
		}
	}
	if d := &r.Delivery; !d.LastDrop.IsZero() && now.Sub(d.LastDrop.Time) < lossWithin {
		r.Reasons = append(r.Reasons, fmt.Sprintf("broker: threw messages away, at least %d while the bridge looked on, the last at %s",
			d.MessagesDroppedSeen, d.LastDrop.UTC().Format(time.RFC3339)))
	}
	for _, l := range r.Delivery.LostSessions {
		if now.Sub(l.Last.Time) < lossWithin {
			r.Reasons = append(r.Reasons, fmt.Sprintf("broker %s: the broker had lost the session and what it held for it, found at %s",
				l.ClientID, l.Last.UTC().Format(time.RFC3339)))
		}
	}
	for _, name := range sortedNames(r.Routes) {
		if reason := r.Routes[name].Failing; reason != "" {
			r.Reasons = append(r.Reasons, "route "+name+": "+reason)
		}
	}
	switch {
	case r.Database.State != "up", !r.Database.Prepared, len(r.Broker) > 0 && subscribed == 0:
		r.Status = Down
	case len(r.Reasons) > 0:
		r.Status = Degraded
	}
}

// complaints says what is amiss with a session that counts as ready.
func (s *Session) complaints(now time.Time) []string {
	var list []string
	complain := func(format string, args ...any) {
		list = append(list, "broker "+s.ClientID+": "+fmt.Sprintf(format, args...))
	}
	if s.Contested {
		complain("probably another client uses client id %s (two releases with one share name, or a stuck old replica)", s.ClientID)
	}
	stale := time.Duration(staleAfter * s.KeepAliveEffectiveS * float64(time.Second))
	heard := s.LastReceived.Time
	if s.LastPingResp.After(heard) {
		heard = s.LastPingResp.Time
	}
	if silence := now.Sub(heard); stale > 0 && !heard.IsZero() && silence > stale {
		complain("silent for %s, with a keep alive of %gs", silence.Round(time.Second), s.KeepAliveEffectiveS)
	}
	if s.OldestUnacknowledgedS > unacknowledgedAfter.Seconds() {
		complain("the oldest message has waited %.0fs for its commit", s.OldestUnacknowledgedS)
	}
	if s.Paused {
		complain("reading is paused: BRIDGE_MAX_INFLIGHT_BYTES is used up")
	}
	return list
}

func orElse(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}
