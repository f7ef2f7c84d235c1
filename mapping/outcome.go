package mapping

// Outcome is what one route makes of one message: exactly one of Rows, Skip and Rejection is set.
type Outcome struct {
	Route     *Route
	Rows      []Row      // at least one: to be written, all or none
	Skip      SkipReason // the route does not want this message
	Rejection *Rejection // the message cannot be mapped: a dead letter
}

// Row is one row of a route's table.
type Row struct {
	DeviceID  string   // in the memory of Fields
	Time      int64    // event time, microseconds since 2000-01-01 UTC (PostgreSQL's epoch)
	MessageID [16]byte // a UUID; with DeviceID and Time the key of the table

	// Fields holds every column of Route.Table.Columns in order, DeviceID, Time and MessageID
	// included, each as PostgreSQL's binary protocol writes it in COPY, in Bind parameters and in
	// array elements alike: a four-byte length (-1 for NULL), then the value's binary form.
	Fields []byte
}

// SkipReason says why a route passed a message over. The empty reason means it did not. The set is
// closed: it labels a metric.
type SkipReason string

// The skip reasons.
const (
	SkipEmpty    SkipReason = "empty"    // no payload: a cleared retained message (ON_EMPTY=skip)
	SkipRetained SkipReason = "retained" // sent because of the subscription, not of an event (RETAINED=skip)
	SkipNoRows   SkipReason = "no_rows"  // EACH selected an empty array
	SkipOverlap  SkipReason = "overlap"  // the copy of a second subscription that matches: the first one's is written
)

// Rejection says why a message cannot become rows of a route.
type Rejection struct {
	Reason Reason
	Detail string // for people: column, expression and offending value, at most MaxDetail bytes of valid UTF-8 without NUL
}

// MaxDetail is the greatest length of Rejection.Detail in bytes.
const MaxDetail = 500

// Reason is why a message was dead-lettered. The set is closed: it labels a metric and is stored
// with the dead letter.
type Reason string

// The reasons a route rejects a message for. Package store adds those of the database.
const (
	ReasonInvalidPayload Reason = "invalid_payload" // not what FORMAT says
	ReasonInvalidUTF8    Reason = "invalid_utf8"    // text is not UTF-8, or holds NUL
	ReasonInvalidDevice  Reason = "invalid_device"  // DEVICE is absent, empty, too long or no scalar
	ReasonInvalidTime    Reason = "invalid_time"    // TIME is absent, malformed or out of range
	ReasonInvalidKey     Reason = "invalid_key"     // a KEY expression is absent
	ReasonInvalidValue   Reason = "invalid_value"   // a column's value does not fit its type
	ReasonInvalidEach    Reason = "invalid_each"    // EACH does not select an array
	ReasonTooLarge       Reason = "too_large"       // above the size limit of a message: only the beginning of the payload is known
	ReasonNoRoute        Reason = "no_route"        // no route matches the topic (a filter of an older configuration)
)
