// Package store writes what the routes made of the messages to PostgreSQL: the third and fourth
// station of the line
//
//	Message -> Row -> Batch -> Commit -> Ack
//
// A [Writer] belongs to one MQTT session. It commits whatever gathered while it was busy, in the
// order of receipt, one transaction per batch, and only then reports the batch as settled; what it
// has not settled was not acknowledged and will be delivered again. No error of the database loses
// a message: a message that the database refuses becomes a dead letter in the very same
// transaction, a route whose table is unusable is parked, and everything else is retried.
//
// Beside the line stand [Tables], which makes and maintains the route tables, [Leases], which shares
// the MQTT sessions out among the replicas, and [Monitor], which knows how the database is.
package store
