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
//
// # Expressions
//
//	{name}              what stands in the topic where the pattern captures name; {name...} is the rest
//	topic, topic[1]     the topic, and one of its levels: from 1, or from -1, the last
//	$.a['b c'][0]       a value of the JSON payload (a singular query of RFC 9535); @ begins at the element of EACH
//	user.name           the first user property of that name; user['any name']
//	content_type, correlation_data, qos, retain, received_at
//	payload             the payload: text, bytea or jsonb, as FORMAT says
//	'text', -1.5, true  literals; two quotes stand for one
//	a ?? b              the first that is present and not null
//
// # Values
//
// A value is kept exactly or the message is rejected: 21.0 is a whole number and 21.5 is none.
// Only floats round, to the nearest value they have, as is their nature. Numbers may come as texts.
// A text column takes every kind of value, of objects and arrays the JSON text. A bytea column takes
// the bytes that a text spells in hexadecimal behind \x, as PostgreSQL does, else its UTF-8. A json or
// jsonb column takes JSON values as they are; a text from elsewhere must itself be JSON. Times lose
// what is shorter than a microsecond. What is absent or null becomes NULL.
package mapping
