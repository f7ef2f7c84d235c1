package mapping

import (
	"crypto/sha256"
	"encoding/binary"
)

// Message ids are UUIDs (RFC 9562). They decide what counts as the same reading, so their making
// must never change: a changed id would insert history a second time. The golden tests hold it.
//
// The hash is SHA-256, cut off: nobody can forge a second message with the id of another, and with
// the processor's instructions for it, it costs little beside the rest.

// Domains keep the hashes of the kinds of id apart.
const (
	domainContent  = "mqttpg message\x00"
	domainKey      = "mqttpg key\x00"
	domainDelivery = "mqttpg delivery\x00"
)

// contentHash identifies a message by the route, the topic and the payload's bytes.
func (s *scratch) contentHash(route string, m *Message) [sha256.Size]byte {
	s.buffer = append(s.buffer[:0], domainContent...)
	s.buffer = appendPart(s.buffer, route)
	s.buffer = appendPart(s.buffer, m.Topic)
	s.buffer = append(s.buffer, m.Payload...)
	return sha256.Sum256(s.buffer)
}

// appendPart appends a text behind its length, so that no two lists of parts look alike.
func appendPart(dst []byte, s string) []byte {
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(s)))
	return append(dst, s...)
}

// elementHash identifies one element of an array in the message with the given hash.
func elementHash(message *[sha256.Size]byte, element int) [sha256.Size]byte {
	var b [sha256.Size + 8]byte
	copy(b[:], message[:])
	binary.BigEndian.PutUint64(b[sha256.Size:], uint64(element))
	return sha256.Sum256(b[:])
}

// deliveryID is a UUIDv7: the time of receipt, and a hash over the delivery's seed.
func deliveryID(m *Message, route string, element int) [16]byte {
	var room [128]byte
	b := append(room[:0], domainDelivery...)
	b = binary.BigEndian.AppendUint64(b, m.Seed)
	b = binary.BigEndian.AppendUint64(b, uint64(element))
	b = append(b, route...)
	return stampedID(7, m.ReceivedAt.UnixMilli(), sha256.Sum256(b))
}

// eventID is a UUIDv8: the event time, so that the ids of new rows lie together in an index, and a
// hash behind it. micros counts from 2000.
func eventID(micros int64, hash [sha256.Size]byte) [16]byte {
	millis := micros / 1000
	if micros%1000 < 0 {
		millis--
	}
	return stampedID(8, millis+postgresEpoch*1000, hash)
}

// stampedID puts 48 bits of milliseconds before 74 bits of hash.
func stampedID(version byte, millis int64, hash [sha256.Size]byte) [16]byte {
	var id [16]byte
	binary.BigEndian.PutUint64(id[:], uint64(millis)<<16)
	copy(id[6:], hash[:10])
	return seal(id, version)
}

// hashID is a UUIDv8 of 122 bits of hash.
func hashID(hash [sha256.Size]byte) [16]byte { return seal([16]byte(hash[:16]), 8) }

// seal writes version and variant over the bits that are theirs.
func seal(id [16]byte, version byte) [16]byte {
	id[6] = id[6]&0x0f | version<<4
	id[8] = id[8]&0x3f | 0x80
	return id
}

// appendKey appends a value of an explicit key in its canonical form: a type, then the value, such
// that equal values are equal bytes and no list of values looks like another. Numbers are equal by
// value (1, 1.0 and 10e-1), but never to a text. Objects and arrays count as they were written.
func appendKey(dst []byte, v value) ([]byte, bool) {
	switch v.kind {
	case kindBool:
		return appendPart(append(dst, 'b'), v.str), true
	case kindNumber:
		d, ok := parseDecimal(v.str)
		if !ok {
			return dst, false
		}
		first, last := d.significant()
		if first == last {
			return append(dst, '0'), true
		}
		sign := byte('+')
		if d.neg {
			sign = '-'
		}
		dst = append(dst, sign)
		dst = binary.BigEndian.AppendUint64(dst, uint64(int64(d.point()-first)))
		dst = binary.BigEndian.AppendUint32(dst, uint32(last-first))
		for i := first; i < last; i++ {
			dst = append(dst, byte('0'+d.digit(i)))
		}
		return dst, true
	case kindText:
		return appendPart(append(dst, 't'), v.str), true
	case kindBytes:
		return appendPart(append(dst, 'x'), v.str), true
	case kindComposite:
		return appendPart(append(dst, 'j'), v.str), true
	}
	return dst, false
}
