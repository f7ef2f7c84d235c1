// Package mapping turns publications into rows.
//
// Routes are compiled once from their configuration; [Routes.Map] then takes one [Message] and
// says, for every route whose topic filter matches, what becomes of it: rows to write, a skip the
// route asked for, or a rejection with its reason. It is the second station of the line
//
//	Message -> Row -> Batch -> Commit -> Ack
//
// and the pure one: no I/O, no clock, no logger, no randomness, no MQTT client and no database
// driver. Equal messages give equal outcomes, byte for byte. Rows leave it already in
// PostgreSQL's binary field format, so that the batch writer only copies.
package mapping
