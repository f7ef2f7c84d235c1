package store

import (
	"time"

	"github.com/mqttpg/bridge/mapping"
)

// Entry is one message waiting in the writer, from its receipt to its settlement.
type Entry struct {
	Message  *mapping.Message
	Outcomes []mapping.Outcome // one per matching route; none: the message becomes a dead letter
	Arena    *mapping.Arena    // that holds both; the writer only hands it back
	Size     int               // bytes charged to the budget, and counted against Config.MaxBytes

	// Rejection is why the message is a dead letter though no route was asked; nil: the routes decide.
	Rejection *mapping.Rejection
	// Content is a hash of the whole content when the message holds only the beginning of it; else 0.
	Content uint64

	// What the delivery ledger tells redeliveries by.
	PacketID    uint16
	Dup         bool
	Incarnation uint64 // rises when the broker has lost the session; 0: it is the one the last owner left
	Attempt     uint64 // number of the connection among all that this owner has begun, whether they came about or not
	Broker      string // host and port it came from; empty: the same session, whatever the address

	// Number is that of the delivery in the ledger, set when it is settled; 0 without a ledger or with
	// QoS 0. Writer.Confirm takes it.
	Number uint64

	Connection uint64 // where the acknowledgement goes; the writer only hands it back

	enqueuedAt time.Time
}

// sameSession says whether the ledger may hold both deliveries under one incarnation.
func (e *Entry) sameSession(other *Entry) bool {
	return e.Incarnation == other.Incarnation && e.Broker == other.Broker
}

// Reasons for dead letters that the database gives; the others are in package mapping.
const (
	ReasonDatabase      mapping.Reason = "database"       // the database refused the values (most often SQLSTATE 22, 23 or 54), or the row alone
	ReasonTableUnusable mapping.Reason = "table_unusable" // the route's table is missing, forbidden, locked or of another shape
)

// LetterReasons are all reasons that a dead letter can have.
func LetterReasons() []mapping.Reason {
	return []mapping.Reason{
		mapping.ReasonInvalidPayload, mapping.ReasonInvalidUTF8, mapping.ReasonInvalidValue, mapping.ReasonInvalidTime,
		mapping.ReasonInvalidDevice, mapping.ReasonInvalidKey, mapping.ReasonInvalidEach, mapping.ReasonNoRoute,
		ReasonDatabase, ReasonTableUnusable, mapping.ReasonTooLarge,
	}
}

// SkipAbandoned counts messages that the writer let go without an outcome, because the process was
// told to stop at once or lost the lease. They were not acknowledged, so that the broker delivers
// those of QoS 1 and 2 again, here or to the next owner, and they are counted again then. Without
// this reason they would stay in flight for ever.
const SkipAbandoned mapping.SkipReason = "abandoned"

// SkipRefusedByTable counts messages whose rows the table let vanish without an error: a trigger of the
// operator's returned null, or a rule did something else instead. They are acknowledged.
const SkipRefusedByTable mapping.SkipReason = "refused_by_table"

// noRoute is the route label of messages that no route matches.
const noRoute = "none"

// skipReasons are all reasons for which a message can be skipped.
var skipReasons = []mapping.SkipReason{
	mapping.SkipEmpty, mapping.SkipRetained, mapping.SkipNoRows, mapping.SkipOverlap, SkipAbandoned, SkipRefusedByTable,
}
