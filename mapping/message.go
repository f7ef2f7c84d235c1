package mapping

import "time"

// Message is one publication as the routes see it. The byte slices are read, never written, and
// rows never alias them. Its strings as well are only good until the message is settled: those who keep
// one longer clone it, see [Arena].
type Message struct {
	Topic           string
	Payload         []byte
	QoS             byte
	Retain          bool
	ContentType     string
	CorrelationData []byte
	UserProperties  []UserProperty

	// ReceivedAt is the time of receipt in UTC, whole microseconds (what timestamptz keeps).
	ReceivedAt time.Time

	// Seed makes the row ids of routes without a reproducible key unique. The receiver draws it at
	// random for each delivery; a replayed dead letter derives it from its id, so that replaying
	// twice writes once. Rows of keyed routes never depend on it.
	Seed uint64
}

// UserProperty is one MQTT 5 User Property. Names may repeat and their order counts
// [MQTT-3.3.2-18].
type UserProperty struct {
	Name, Value string
}
