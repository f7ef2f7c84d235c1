package store

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/mqttpg/bridge/mapping"
)

// deadLetter is one message that one route could not take.
type deadLetter struct {
	entry  *Entry
	route  string
	reason mapping.Reason
	detail string
}

// cut shortens the payload of a letter that is too long; no replay takes it for a reading then. The entry
// stays as it is.
func (l *deadLetter) cut() {
	n := len(l.entry.Message.Payload)
	if n <= keptPayload {
		return
	}
	message, entry := *l.entry.Message, *l.entry
	message.Payload = message.Payload[:keptPayload]
	entry.Message = &message
	l.entry, l.reason = &entry, mapping.ReasonTooLarge
	l.detail = fmt.Sprintf("the server did not take the payload, of its %d bytes %d are kept; %s", n, keptPayload, l.detail)
}

// maxProperties is the size in bytes beyond which user properties are left out of a dead letter.
// They come from the publisher, and jsonb has a limit that a dead letter must never reach: a dead
// letter that cannot be written holds up the line.
const maxProperties = 16 << 20

// properties is the document in dead_letters.properties.
type properties struct {
	ContentType     string      `json:"content_type,omitempty"`
	CorrelationData string      `json:"correlation_data,omitempty"` // base64
	UserProperties  [][2]string `json:"user_properties,omitempty"`
	Truncated       bool        `json:"truncated,omitempty"` // user properties were too large to keep
}

// maxStatement is about how many bytes one statement carries, unless a single message is larger: the
// protocol ends at 1 GiB.
const maxStatement = 64 << 20

// keptPayload is how many bytes of a payload a dead letter keeps that the server gives up over time and
// again. A whole letter of 256 MiB, the most that MQTT carries, is stored; but it takes a server memory and
// time that not every one has, and a letter that cannot be written holds up the line.
const keptPayload = 1 << 20

// insertDeadLetters makes the statements for letters, with their payloads whole or cut to keptPayload.
func insertDeadLetters(schema string, letters []deadLetter, cut bool) ([]*statement, error) {
	if cut {
		letters = slices.Clone(letters)
		for i := range letters {
			letters[i].cut()
		}
	}
	var list []*statement
	for len(letters) > 0 {
		n, size := 0, 0
		for n < len(letters) && (n == 0 || size+len(letters[n].entry.Message.Payload) <= maxStatement) {
			size += len(letters[n].entry.Message.Payload)
			n++
		}
		s, err := insertSomeDeadLetters(schema, letters[:n])
		if err != nil {
			return nil, err
		}
		list, letters = append(list, s), letters[n:]
	}
	return list, nil
}

func insertSomeDeadLetters(schema string, letters []deadLetter) (*statement, error) {
	var routes, topics, reasons, details, ids, payloads, qos, retain, documents, received column
	for i := range letters {
		l := &letters[i]
		m := l.entry.Message
		document, err := propertiesOf(m)
		if err != nil {
			return nil, err
		}
		id := l.id()
		ids.add(id[:])
		routes.add([]byte(l.route))
		topics.add([]byte(cleanText(m.Topic)))
		payloads.add(m.Payload)
		qos.add([]byte{0, m.QoS})
		retain.add([]byte{boolByte(m.Retain)})
		documents.add(append([]byte{1}, document...)) // jsonb, version 1
		received.add(binary.BigEndian.AppendUint64(nil, uint64(m.ReceivedAt.UnixMicro()-postgresEpoch)))
		reasons.add([]byte(l.reason))
		details.add([]byte(cutDetail(l.detail)))
	}
	return &statement{
		sql: "insert into " + pgx.Identifier{schema, "dead_letters"}.Sanitize() +
			" (id, route, topic, payload, qos, retain, properties, received_at, reason, detail)" +
			" select * from unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) on conflict (id) do nothing",
		params: [][]byte{
			ids.array(pgtype.UUIDOID), routes.array(pgtype.TextOID), topics.array(pgtype.TextOID), payloads.array(pgtype.ByteaOID),
			qos.array(pgtype.Int2OID), retain.array(pgtype.BoolOID), documents.array(pgtype.JSONBOID),
			received.array(pgtype.TimestamptzOID), reasons.array(pgtype.TextOID), details.array(pgtype.TextOID),
		},
		oids: []uint32{
			pgtype.UUIDArrayOID, pgtype.TextArrayOID, pgtype.TextArrayOID, pgtype.ByteaArrayOID,
			pgtype.Int2ArrayOID, pgtype.BoolArrayOID, pgtype.JSONBArrayOID,
			pgtype.TimestamptzArrayOID, pgtype.TextArrayOID, pgtype.TextArrayOID,
		},
	}, nil
}

// id is the UUIDv7 of the letter: the time of receipt, then a hash of the delivery and the route. It
// is the same in every attempt to commit the batch.
func (l *deadLetter) id() [16]byte {
	m := l.entry.Message
	h := fnv.New128a()
	var n [16]byte
	binary.BigEndian.PutUint64(n[:], m.Seed)
	binary.BigEndian.PutUint64(n[8:], l.entry.Connection<<16|uint64(l.entry.PacketID))
	h.Write(n[:])
	h.Write([]byte(l.route))
	h.Write([]byte{0})
	h.Write([]byte(m.Topic))
	h.Write([]byte{0})
	h.Write(m.Payload)
	var id [16]byte
	h.Sum(id[:0])
	binary.BigEndian.PutUint64(n[:], uint64(m.ReceivedAt.UnixMilli())<<16)
	copy(id[:6], n[:6])
	id[6] = id[6]&0x0f | 0x70
	id[8] = id[8]&0x3f | 0x80
	return id
}

func propertiesOf(m *mapping.Message) ([]byte, error) {
	doc := properties{ContentType: cleanText(m.ContentType)}
	if m.CorrelationData != nil {
		doc.CorrelationData = base64.StdEncoding.EncodeToString(m.CorrelationData)
	}
	size := 0
	for _, p := range m.UserProperties {
		size += len(p.Name) + len(p.Value)
	}
	if size > maxProperties {
		doc.Truncated = true
	} else {
		for _, p := range m.UserProperties {
			doc.UserProperties = append(doc.UserProperties, [2]string{cleanText(p.Name), cleanText(p.Value)})
		}
	}
	b, err := json.Marshal(doc)
	if err != nil {
		return nil, fmt.Errorf("encode properties of a dead letter: %w", err)
	}
	return b, nil
}

// postgresEpoch is 2000-01-01 UTC in microseconds of Unix time.
var postgresEpoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC).UnixMicro()

// cleanText makes text that PostgreSQL takes. Only a broker that breaks the protocol sends other
// [MQTT-1.5.4-1] [MQTT-1.5.4-2].
func cleanText(s string) string {
	if utf8.ValidString(s) && strings.IndexByte(s, 0) < 0 {
		return s
	}
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}

// cutDetail makes a detail that may be stored: clean, and at most mapping.MaxDetail bytes.
func cutDetail(s string) string {
	s = cleanText(s)
	if len(s) <= mapping.MaxDetail {
		return s
	}
	const ellipsis = "…"
	cut := mapping.MaxDetail - len(ellipsis)
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + ellipsis
}

func boolByte(b bool) byte {
	if b {
		return 1
	}
	return 0
}

// column gathers the elements of one array parameter without nulls.
type column struct {
	n int
	b []byte
}

func (c *column) add(value []byte) {
	if c.b == nil {
		c.b = make([]byte, 20) // the header
	}
	c.n++
	c.b = binary.BigEndian.AppendUint32(c.b, uint32(len(value)))
	c.b = append(c.b, value...)
}

func (c *column) array(oid uint32) []byte {
	binary.BigEndian.PutUint32(c.b[0:], 1)
	binary.BigEndian.PutUint32(c.b[4:], 0)
	binary.BigEndian.PutUint32(c.b[8:], oid)
	binary.BigEndian.PutUint32(c.b[12:], uint32(c.n))
	binary.BigEndian.PutUint32(c.b[16:], 1)
	return c.b
}
