package ingest

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"go.uber.org/zap"
)

// Severity says how much a [Finding] matters.
type Severity string

// The severities.
const (
	SeverityError   Severity = "error"   // something that was asked for is not delivered
	SeverityWarning Severity = "warning" // messages may be lost, or come less well than was asked for
	SeverityInfo    Severity = "info"    // worth knowing; nothing need be done
)

// Finding is one line of the delivery self-check: what the broker grants or is known for, what that
// means for the messages, and what can be done about it. Findings are comparable.
type Finding struct {
	Severity    Severity
	What        string
	Consequence string
	Remedy      string // empty where nothing is to be done
}

// CheckGrants compares what cfg asks for with what a broker granted in CONNACK and SUBACK. A
// subscription that has no answer yet is passed over. What CONNACK rules out (shared, wildcard and
// overlapping subscriptions) is told with the subscriptions concerned. It has no side effects.
func CheckGrants(cfg *Config, granted Granted, subs []Subscription) []Finding {
	var found []Finding
	add := func(s Severity, what, consequence, remedy string) {
		found = append(found, Finding{s, what, consequence, remedy})
	}
	for _, sub := range subs {
		if sub.OK || !sub.Answered() {
			continue
		}
		found = append(found, cfg.refusal(sub))
	}
	if granted.MaximumQoS < cfg.QoS {
		add(SeverityWarning, fmt.Sprintf("the broker takes messages with QoS %d at most, QoS %d was asked for", granted.MaximumQoS, cfg.QoS),
			promise(granted.MaximumQoS), "allow a higher QoS at the broker, or set BRIDGE_MQTT_QOS to what it takes")
	}
	if granted.SessionExpiry < cfg.SessionExpiry {
		add(SeverityWarning, fmt.Sprintf("the broker keeps a session for %s without a connection, %s was asked for", granted.SessionExpiry, cfg.SessionExpiry),
			"when no bridge is connected for longer than that, everything the broker held for it is lost",
			"raise the broker's limit of the session expiry")
	}
	if granted.KeepAlive != cfg.KeepAlive {
		severity, consequence := SeverityInfo, "each side notices sooner that the other has vanished"
		switch {
		case granted.KeepAlive == 0:
			severity, consequence = SeverityWarning, "a broker that has vanished without a word is never noticed"
		case cfg.KeepAlive > 0 && granted.KeepAlive > cfg.KeepAlive:
			consequence = "it takes longer until a broker that has vanished without a word is noticed"
		}
		add(severity, fmt.Sprintf("the broker sets the keep alive to %s, %s was asked for", granted.KeepAlive, cfg.KeepAlive), consequence, "")
	}
	if !granted.Retain {
		switch {
		case cfg.StatusTopic != "":
			add(SeverityWarning, "the broker keeps no retained messages", "it refuses the retained status and a connection with a retained Will",
				"unset BRIDGE_MQTT_STATUS_TOPIC, or allow retained messages at the broker")
		case cfg.ShareName == "":
			add(SeverityInfo, "the broker keeps no retained messages", "RETAINED=store has nothing to store at the time of subscription", "")
		}
	}
	return found
}

// refusal is the finding of a subscription that is not granted as asked for.
func (cfg *Config) refusal(sub Subscription) Finding {
	f := Finding{
		Severity: SeverityError, What: "subscription to " + sub.Filter + ": " + sub.Text,
		Consequence: "nothing is received for it",
	}
	if cfg.Behind != nil {
		if names := cfg.Behind(strings.TrimPrefix(sub.Filter, cfg.subscription(""))); len(names) > 0 {
			f.Consequence = "route " + strings.Join(names, ", ") + " gets nothing through it"
		}
	}
	switch {
	case sub.ReasonCode < codeUnspecifiedError:
		f.Consequence = promise(sub.ReasonCode)
		f.Remedy = fmt.Sprintf("allow QoS %d at the broker, or set BRIDGE_MQTT_QOS=%d if that will do", cfg.QoS, sub.ReasonCode)
	case sub.ReasonCode == codeSharedNotSupported:
		f.Remedy = "set BRIDGE_MQTT_MODE=exclusive, which uses plain subscriptions"
	case sub.ReasonCode == codeNotAuthorized, sub.ReasonCode == codeUnspecifiedError && strings.HasPrefix(sub.Text, refusedText):
		f.Remedy = "allow this filter to the bridge's user at the broker"
	case sub.ReasonCode == codePacketTooLarge:
		f.Remedy = "raise the broker's limit of the packet size"
	case sub.ReasonCode == codeWildcardNotSupport:
		f.Remedy = "name every topic in the route, or use another broker"
	}
	return f
}

// promise is what the greatest QoS of a delivery means.
func promise(qos byte) string {
	switch qos {
	case 0:
		return "what arrives while the bridge or the database is away is lost"
	case 1:
		return "the broker may deliver a message again; the delivery ledger recognises that"
	}
	return "nothing changes"
}

// maxBrokerText bounds what is kept of the broker's own words.
const maxBrokerText = 200

// Software is what a broker says it is.
type Software struct {
	Mosquitto bool
	EMQX      bool
	Text      string // as the broker says it; empty = unknown
	version   [3]int // of Mosquitto; zero = none that could be read
}

// String is the text, or "unknown".
func (s Software) String() string {
	if s.Text == "" {
		return "unknown"
	}
	return s.Text
}

const emqxTree = "$SYS/brokers/"

// parseSoftware reads the payload of a version topic. EMQX publishes a bare number below $SYS/brokers/.
func parseSoftware(topic string, payload []byte) Software {
	text := strings.ToValidUTF8(string(payload[:min(len(payload), maxBrokerText)]), "")
	text = strings.Join(strings.Fields(strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7F {
			return ' '
		}
		return r
	}, text)), " ")
	s := Software{Text: text}
	if text == "" {
		return s
	}
	if strings.HasPrefix(topic, emqxTree) {
		s.EMQX = true
		s.Text = "EMQX " + text
		return s
	}
	number, mosquitto := strings.CutPrefix(text, "mosquitto version ")
	if !mosquitto {
		return s
	}
	s.Mosquitto = true
	number, _, _ = strings.Cut(number, " ")
	number, _, _ = strings.Cut(number, "-")
	parts := strings.Split(number, ".")
	for i := range min(len(parts), len(s.version)) {
		n, err := strconv.Atoi(parts[i])
		if err != nil || n < 0 {
			s.version = [3]int{}
			break
		}
		s.version[i] = n
	}
	return s
}

// fault is a known one of Mosquitto 2.0, in its versions first to last.
type fault struct {
	first, last int
	shared      bool // concerns shared subscriptions alone
	Finding
}

// upgrade is the remedy for all of them.
const upgrade = "use Mosquitto 2.0.22 or newer"

// mosquittoFaults are those that concern the delivery to the bridge, by the release notes of
// Mosquitto and by experiments with 2.0.11, 2.0.20, 2.0.21 and 2.1.2. Those that depend on a setting that cannot be
// seen from here say so, and are for information.
var mosquittoFaults = []fault{
	{0, 11, true, Finding{
		SeverityWarning, "Mosquitto before 2.0.12 forgets shared subscriptions of a session that comes back (some distributions have mended that)",
		"the bridge subscribes again at every connection, but what is published between the two is not queued for it", upgrade,
	}},
	{0, 12, false, Finding{
		SeverityWarning, "Mosquitto before 2.0.13 sends more than the Receive Maximum allows when a queue has built up",
		"the bridge reads no further than it can commit, and the rest waits in the connection; routes without a key are slower meanwhile, and where a proxy or large buffers lie between, a crash can write their rows twice", upgrade,
	}},
	{0, 12, true, Finding{
		SeverityInfo, "Mosquitto before 2.0.13 sends retained messages to shared subscriptions, against the standard",
		"the bridge gets none, since it asks for none, with Retain Handling 2", "",
	}},
	{0, 14, false, Finding{
		SeverityInfo, "Mosquitto before 2.0.15 closes the older of two connections with one client id without saying why",
		"a second bridge with the same client ids shows as lost connections, recognised only when they repeat", upgrade,
	}},
	{0, 14, false, Finding{
		SeverityWarning, "Mosquitto before 2.0.15 may stop delivering a queue in which messages have expired",
		"what is queued behind a message with a Message Expiry Interval that has passed can wait until the session connects again", upgrade,
	}},
	{0, 14, false, Finding{
		SeverityInfo, "Mosquitto before 2.0.15 lets no session expire that it has restored from disk",
		"a session that nobody uses any more goes on taking its share of the messages after a restart of the broker", upgrade,
	}},
	{0, 3, false, Finding{
		SeverityWarning, "Mosquitto before 2.0.4 does not count QoS 1 and 2 messages in $SYS/broker/publish/messages",
		"messages it has dropped are not seen here", upgrade,
	}},
	{0, 15, false, Finding{
		SeverityInfo, "Mosquitto before 2.0.16 takes a value out of $SYS when it has not changed for a minute",
		"the count of dropped messages is unknown until it rises; the rise itself is seen", upgrade,
	}},
	{16, 16, false, Finding{
		SeverityWarning, "Mosquitto 2.0.16 drops every message when max_queued_messages is 0, and ignores max_inflight_messages",
		"with that setting nothing is delivered", upgrade,
	}},
	{0, 17, false, Finding{
		SeverityInfo, "Mosquitto before 2.0.18 may crash at a subscription, under rare conditions",
		"a crash takes what the broker has not saved to disk", upgrade,
	}},
	{17, 21, false, Finding{
		SeverityInfo, "Mosquitto 2.0.17 to 2.0.21 may cut clients off that publish with QoS 2 when max_queued_messages is 0",
		"devices see \"quota exceeded\" and must publish again", upgrade,
	}},
	{12, 22, false, Finding{
		SeverityInfo, "Mosquitto 2.0.12 to 2.0.22 may queue nothing for a session without a connection when per_listener_settings is true",
		"with that setting, what is published while no bridge is connected can be lost", "leave per_listener_settings at false",
	}},
}

// CheckSoftware lists the faults that a broker's version is known for, and what its kind means for the
// delivery to a bridge that subscribes as cfg says. It has no side effects.
func CheckSoftware(cfg *Config, software Software) []Finding {
	var found []Finding
	shared := cfg.ShareName != ""
	switch {
	case software.EMQX:
		found = append(found, Finding{
			SeverityInfo, "EMQX sends a session max_inflight messages at a time (32 by default), however large the Receive Maximum is",
			"the rate of a session is at most that many messages for each commit and its acknowledgement", "raise mqtt.max_inflight to BRIDGE_MQTT_RECEIVE_MAXIMUM",
		}, Finding{
			SeverityInfo, "EMQX drops the oldest message of a queue that is full (max_mqueue_len, 1000 by default), and tells nobody",
			"an outage that lasts longer than the queue loses messages", "raise mqtt.max_mqueue_len",
		})
	case software.Mosquitto:
		if shared {
			found = append(found, Finding{
				SeverityInfo, "Mosquitto does not store shared subscriptions",
				"after a restart of the broker, what is published before the bridge has subscribed again is not queued for it",
				"use BRIDGE_MQTT_MODE=exclusive, whose plain subscription Mosquitto stores",
			})
		}
		if software.version[0] == 1 {
			found = append(found, Finding{
				SeverityWarning, software.Text + " is older than the faults known here",
				"nobody has looked at how it delivers", upgrade,
			})
		}
		if software.version[0] != 2 || software.version[1] != 0 {
			break
		}
		for _, f := range mosquittoFaults {
			if patch := software.version[2]; patch >= f.first && patch <= f.last && (shared || !f.shared) {
				found = append(found, f.Finding)
			}
		}
	}
	order := map[Severity]int{SeverityError: 0, SeverityWarning: 1, SeverityInfo: 2}
	slices.SortStableFunc(found, func(a, b Finding) int { return order[a.Severity] - order[b.Severity] })
	return found
}

// selfCheck compares what was asked for with what is granted by now, and logs what has not been told of
// it yet. s.mu is held.
func (s *Session) selfCheck() {
	st := &s.status
	st.Findings = CheckGrants(&s.cfg, st.Granted, st.Subscriptions)
	for _, f := range st.Findings {
		if !slices.Contains(s.told, f) { // neither at each retry nor at each connection
			s.told = append(s.told, f)
			f.log(s.log)
		}
	}
	if len(st.Subscriptions) == 0 || slices.ContainsFunc(st.Subscriptions, func(sub Subscription) bool { return sub.Answered() }) {
		s.told = slices.Clone(st.Findings) // what has been mended is told when it comes again
	}
}

// log writes the finding as one line.
func (f Finding) log(log *zap.Logger) {
	level := zap.InfoLevel
	switch f.Severity {
	case SeverityError:
		level = zap.ErrorLevel
	case SeverityWarning:
		level = zap.WarnLevel
	}
	log.Log(level, "delivery self-check", zap.String("what", f.What), zap.String("consequence", f.Consequence), zap.String("remedy", f.Remedy))
}
