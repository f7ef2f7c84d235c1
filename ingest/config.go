package ingest

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/url"
	"strings"
	"time"

	"github.com/mqttpg/bridge/mapping"
	"go.uber.org/zap"
)

// Config is what all sessions of one process have in common.
type Config struct {
	// URLs are tried in turn at every connection attempt. Schemes: mqtt and tcp, mqtts, ssl and tls,
	// ws, wss; default ports 1883, 8883, 80 and 443. User information in a URL stands in for
	// Username and Password when Username is empty.
	URLs     []*url.URL
	Username string
	// Password is called at every attempt, so that a rotated secret is taken up; nil = no password.
	Password func() (string, error)

	// CAFile, CertFile and KeyFile are PEM files, read again at every attempt. An unreadable file
	// does no harm while an earlier reading was good. ServerName overrides the host name that the
	// broker's certificate is checked against.
	CAFile, CertFile, KeyFile, ServerName string

	// ShareName makes every subscription $share/<ShareName>/<filter>; empty = plain subscriptions.
	ShareName string
	// Filters are topic filters that do not cover one another; none only while Stale is set. Those that
	// overlap in part are subscribed to with identifiers, see [mapping.Subscription].
	Filters []string

	// Stale are subscriptions of an earlier configuration, as [Config.Subscriptions] writes them. The
	// broker keeps them with its session, and would go on sending what nobody asks for any more, or send
	// twice what a new filter covers as well. They are unsubscribed when the new ones stand, so that
	// nothing is missed in between. Unsubscribed, when set, is called after that, and at once when the
	// broker has no session that could hold them; an error is logged.
	Stale        []string
	Unsubscribed func(ctx context.Context) error
	QoS          byte // asked for; less granted is a failure that Status shows

	// Behind, when set, names the routes that one of Filters is for, so that a refusal can name them.
	Behind func(filter string) []string

	KeepAlive     time.Duration // whole seconds, 0 to 65535; 0 = off
	SessionExpiry time.Duration // whole seconds; longer than any outage to be survived

	// ReceiveMaximum is how many QoS 1 and 2 messages may be unacknowledged. It decides the greatest
	// rate: no more than ReceiveMaximum per commit, linger and acknowledgement together. It is always
	// sent: without it Mosquitto takes 20. Exceeding it is not answered with a DISCONNECT
	// [MQTT-3.3.4-9], because Mosquitto before 2.0.13 does so in good faith; see MaxInFlight.
	ReceiveMaximum uint16

	// MaxInFlight is how many QoS 1 and 2 messages of one connection may be delivered and not yet
	// acknowledged before nothing more is read. It holds back a broker that exceeds Receive Maximum: what
	// lies in the broker's queue costs nothing here. With ReceiveMaximum or less, a broker that keeps to it is
	// held back as well; 0: only Budget is a bound.
	MaxInFlight int

	// FewUnread keeps down how many acknowledgements are on their way to a broker that exceeds Receive Maximum: each is
	// made so long that few of them fill what lies between, and then Acknowledge waits. Such a broker may read none
	// while it sends its whole queue, and all that was acknowledged meanwhile comes again after a crash.
	FewUnread bool

	// MaxMessageBytes is the greatest PUBLISH that is held whole, its topic and properties included; 0:
	// what the protocol allows, 256 MB. Of a larger one the beginning is delivered, see Delivery.Cut, and
	// the rest is read and let go.
	MaxMessageBytes int

	// StatusTopic, when set, gets a retained "online" at <StatusTopic>/<client id> after every
	// connect, and "offline" as Will and before a clean disconnect.
	StatusTopic string

	// Budget is shared by all sessions of the process. Its bytes are taken here and released by
	// whoever got the Delivery.
	Budget *Budget

	// Deliver is called for each message in the order of receipt, by the goroutine that reads from
	// the broker, and must not block: keepalive answers wait behind it. ctx ends with the
	// connection, whose messages can then no longer be acknowledged. The Delivery is good during the
	// call, its message until the callee releases Arena.
	Deliver func(ctx context.Context, d *Delivery)

	// BeginIncarnation, when set, is called before the first SUBSCRIBE of a connection whose CONNACK
	// says Session Present 0, with the Incarnation of the deliveries to come. ctx gives it two seconds,
	// because what is published until the subscription stands is not queued for anybody. After an error
	// the session subscribes, leaves at once, and comes back when a later call has succeeded.
	BeginIncarnation func(ctx context.Context, incarnation uint64) error

	// BeginConnection, when set, is called when the broker is reached, before CONNECT, with the Attempt of
	// the deliveries to come. ctx gives it two seconds; after an error the connection is made all the
	// same.
	BeginConnection func(ctx context.Context, attempt uint64) error

	// Confirmed, when set, is told the Ack.Number of the last acknowledgement that the broker has
	// certainly seen: a PINGREQ follows each write of acknowledgements, unless one is still unanswered.
	// It must not block.
	Confirmed func(number uint64)

	// CommonSessions says that all URLs lead to one broker, or to a cluster whose nodes know each other's
	// sessions. Without it a session that is present behind another URL than the last one counts as a new
	// incarnation: packet identifiers of unrelated brokers have nothing to do with each other.
	CommonSessions bool

	// Known says that the broker is to have the session already, from an earlier owner of the client id.
	// Where it says Session Present 0 all the same, it has lost it. Without Known nobody can tell a lost
	// session from a new one on the first connection.
	Known bool
	// Lost, when set, is called when the broker has lost the session. It must not block.
	Lost func()

	// Confirm, when set, is asked before a reconnection that follows a takeover or a connection that did
	// not last: an error says that somebody else may have the right to the client id by now, and no
	// connection is attempted until it says otherwise.
	Confirm func() error

	Log     *zap.Logger
	Metrics *Metrics
}

// Delivery is one receipt of a PUBLISH.
type Delivery struct {
	Message    *mapping.Message
	Arena      *mapping.Arena // where Message is, with one hold that belongs to the callee
	PacketID   uint16         // 0 for QoS 0
	Dup        bool           // the broker sent this packet id before, in this session [MQTT-3.3.1-1]
	Connection uint64         // generation: rises with every CONNACK of this Session

	// Incarnation rises with every CONNACK that says Session Present 0: what packet identifiers meant
	// before is void then. 0: the broker still has the session that it had before this Session.
	Incarnation uint64

	// Attempt rises with every connection that was begun, whether the broker accepted it or not.
	Attempt uint64
	// Broker is host and port of the broker; empty with Config.CommonSessions.
	Broker string

	// Cut is set when the message is above Config.MaxMessageBytes: its payload is only the beginning.
	Cut *Cut

	// SubscriptionIDs are the identifiers of the subscriptions that this copy answers; empty where
	// the subscription carried none.
	SubscriptionIDs []uint32

	Size int // bytes taken from the Budget, to be released when the message is settled
}

// Cut tells of a message that is too large to be held.
type Cut struct {
	Size int    // bytes of the whole PUBLISH after its fixed header
	Hash uint64 // of the whole payload
}

// Ack returns what acknowledges d.
func (d *Delivery) Ack() Ack {
	return Ack{Connection: d.Connection, PacketID: d.PacketID, QoS: d.Message.QoS}
}

// Ack names one delivery to acknowledge.
type Ack struct {
	Connection uint64
	PacketID   uint16
	QoS        byte
	Number     uint64 // for Config.Confirmed; the bridge's own
}

// overheadBytes is charged to the Budget for each message on top of its packet: about what the
// Delivery, its topic and its place in the writer's batch take, so that a flood of empty messages is
// bounded as well.
const overheadBytes = 512

// maxInFlight is MaxInFlight as it counts.
func (cfg *Config) maxInFlight() int64 {
	if cfg.MaxInFlight <= 0 {
		return math.MaxInt64
	}
	return int64(cfg.MaxInFlight)
}

// Subscriptions are the topic filters as the broker sees them.
func (cfg *Config) Subscriptions() []string {
	list := make([]string, len(cfg.Filters))
	for i, filter := range cfg.Filters {
		list[i] = cfg.subscription(filter)
	}
	return list
}

// check returns all mistakes at once.
func (cfg *Config) check(clientID string) error {
	var errs []error
	add := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if len(cfg.URLs) == 0 {
		add("no broker URL")
	}
	for _, u := range cfg.URLs {
		if _, ok := schemes[strings.ToLower(u.Scheme)]; !ok {
			add("broker URL %s: scheme is none of mqtt, mqtts, ws, wss (or tcp, ssl, tls)", shown(u))
		}
		if u.Hostname() == "" {
			add("broker URL %s: no host", shown(u))
		}
	}
	if (cfg.CertFile == "") != (cfg.KeyFile == "") {
		add("client certificate and key must be given together")
	}
	if n := len(clientID); n == 0 || n > math.MaxUint16 {
		add("client id is empty or longer than 65535 bytes")
	}
	if strings.ContainsAny(cfg.ShareName, "/+#") { // [MQTT-4.8.2-1] [MQTT-4.8.2-2]
		add("share name %q contains /, + or #", cfg.ShareName)
	}
	if len(cfg.Filters) == 0 && len(cfg.Stale) == 0 {
		add("no topic filter")
	}
	for _, filter := range cfg.Filters {
		if filter == "" || utf8Fault([]byte(filter)) != "" || len(cfg.subscription(filter)) > math.MaxUint16 {
			add("topic filter %.100q is empty, too long or no UTF-8", filter)
		}
	}
	if cfg.QoS > 2 {
		add("QoS %d is none of 0, 1, 2", cfg.QoS)
	}
	if s := cfg.KeepAlive; s < 0 || s > math.MaxUint16*time.Second || s%time.Second != 0 {
		add("keep alive %s is not 0 to 65535 whole seconds", s)
	}
	if s := cfg.SessionExpiry; s < 0 || s/time.Second > math.MaxUint32 || s%time.Second != 0 {
		add("session expiry %s is not 0 to 4294967295 whole seconds", s)
	}
	if cfg.ReceiveMaximum == 0 { // a protocol error, MQTT 5 section 3.1.2.11.3
		add("receive maximum is 0")
	}
	if text := topicFault([]byte(cfg.StatusTopic)); text != "" {
		add("status topic %q %s", cfg.StatusTopic, text)
	}
	if cfg.Budget == nil || cfg.Deliver == nil || cfg.Log == nil || cfg.Metrics == nil {
		add("budget, deliver function, logger and metrics are required")
	}
	return errors.Join(errs...)
}

// subscription is the Topic Filter of SUBSCRIBE for one of Filters.
func (cfg *Config) subscription(filter string) string {
	if cfg.ShareName == "" {
		return filter
	}
	return "$share/" + cfg.ShareName + "/" + filter
}
