package ingest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
	"unsafe"

	"github.com/mqttpg/bridge/mapping"
)

// publish is a decoded PUBLISH packet. Its slices and strings alias the frame it was decoded from.
type publish struct {
	dup      bool
	qos      byte
	retain   bool
	topic    string
	packetID uint16 // 0 for QoS 0
	payload  []byte

	contentType     string
	correlationData []byte
	userProperties  []mapping.UserProperty
	// subscriptionIDs has one element for each matching subscription that carried an identifier
	// [MQTT-3.3.4-4]; several when the broker sends one copy for overlapping subscriptions.
	subscriptionIDs []uint32
}

// unpacked is how many bytes the user properties take on top of the frame: an empty one is 5 bytes there
// and 32 in memory, and append leaves a quarter to spare.
func (p *publish) unpacked() int {
	n := 0
	for i := range p.userProperties {
		n += 40 + len(p.userProperties[i].Name) + len(p.userProperties[i].Value)
	}
	return n
}

// packetError is a violation of the protocol by the broker. The connection ends with a DISCONNECT
// that carries the code [MQTT-4.13.1-1].
type packetError struct {
	code byte
	text string
}

func (e *packetError) Error() string {
	return fmt.Sprintf("%s (0x%02X %s)", e.text, e.code, reasonName(e.code))
}

func malformed(text string) error     { return &packetError{code: 0x81, text: text} }
func protocolError(text string) error { return &packetError{code: 0x82, text: text} }

// errShort is returned by fieldReader; decodePublish says which field it was.
var errShort = errors.New("ends within a field")

// Property identifiers of PUBLISH, MQTT 5 section 3.3.2.3.
const (
	propPayloadFormat   = 0x01
	propMessageExpiry   = 0x02
	propContentType     = 0x03
	propResponseTopic   = 0x08
	propCorrelationData = 0x09
	propSubscriptionID  = 0x0B
	propTopicAlias      = 0x23
	propUser            = 0x26
)

// decodePublish decodes what follows the fixed header of a PUBLISH. flags are the low four bits of
// its first byte. Errors are *packetError.
func decodePublish(flags byte, frame []byte) (publish, error) {
	p := publish{dup: flags&0x08 != 0, qos: flags >> 1 & 0x03, retain: flags&0x01 != 0}
	if err := checkPublishFlags(flags); err != nil {
		return p, err
	}
	r := fieldReader{rest: frame}
	topic, err := r.binary()
	if err != nil {
		return p, malformed("PUBLISH: Topic Name " + err.Error())
	}
	if bytes.IndexByte(topic, '+') >= 0 || bytes.IndexByte(topic, '#') >= 0 { // [MQTT-3.3.2-2] [MQTT-4.7.1-1]
		return p, malformed("PUBLISH: Topic Name contains a wildcard")
	}
	p.topic = wellFormed(topic)
	if p.qos > 0 {
		if p.packetID, err = r.uint16(); err != nil {
			return p, malformed("PUBLISH: Packet Identifier " + err.Error())
		}
		if p.packetID == 0 { // [MQTT-2.2.1-3]
			return p, malformed("PUBLISH: Packet Identifier is 0")
		}
	}
	length, err := r.varint()
	if err != nil {
		return p, malformed("PUBLISH: Property Length " + err.Error())
	}
	properties, err := r.take(int(length))
	if err != nil {
		return p, malformed("PUBLISH: Property Length exceeds the packet")
	}
	if len(properties) > 0 {
		if err := p.decodeProperties(properties); err != nil {
			return p, err
		}
	}
	if p.topic == "" { // without an alias, which decodeProperties refuses, nothing names the topic
		return p, protocolError("PUBLISH: neither Topic Name nor Topic Alias")
	}
	p.payload = r.rest
	return p, nil
}

// checkPublishFlags refuses what [MQTT-3.3.1-4] and [MQTT-3.3.1-2] forbid. It needs no body, so it
// runs before the byte budget is asked for one.
func checkPublishFlags(flags byte) error {
	switch flags >> 1 & 0x03 {
	case 3:
		return malformed("PUBLISH: QoS 3")
	case 0:
		if flags&0x08 != 0 {
			return malformed("PUBLISH: DUP is set on QoS 0")
		}
	}
	return nil
}

func (p *publish) decodeProperties(properties []byte) error {
	var seen uint64 // bit n: property n came already; all but two may come only once
	r := fieldReader{rest: properties}
	for len(r.rest) > 0 {
		id, err := r.varint()
		if err != nil {
			return malformed("PUBLISH: property identifier " + err.Error())
		}
		if id < 64 && id != propUser && id != propSubscriptionID {
			if seen&(1<<id) != 0 {
				return protocolError(fmt.Sprintf("PUBLISH: property 0x%02X comes twice", id))
			}
			seen |= 1 << id
		}
		if err := p.decodeProperty(id, &r); err != nil {
			if errors.Is(err, errShort) {
				return malformed(fmt.Sprintf("PUBLISH: property 0x%02X %v", id, err))
			}
			return err
		}
	}
	return nil
}

func (p *publish) decodeProperty(id uint32, r *fieldReader) (err error) {
	switch id {
	case propPayloadFormat:
		_, err = r.take(1) // nobody asks for it, so any value will do: Mosquitto forwards 2
		return err
	case propMessageExpiry:
		_, err = r.uint32() // the broker counts it down, so it must never become part of a key
		return err
	case propContentType:
		p.contentType, err = r.utf8()
		return err
	case propResponseTopic:
		// Nobody answers, so a wildcard in it will do: [MQTT-3.3.2-14] is the publisher's to keep, and
		// Mosquitto does not see to it.
		_, err = r.utf8()
		return err
	case propCorrelationData:
		p.correlationData, err = r.binary()
		return err
	case propSubscriptionID:
		v, err := r.varint()
		if err != nil {
			return err
		}
		if v == 0 {
			return protocolError("PUBLISH: Subscription Identifier is 0")
		}
		p.subscriptionIDs = append(p.subscriptionIDs, v)
	case propTopicAlias:
		if _, err := r.uint16(); err != nil {
			return err
		}
		// Our CONNECT says Topic Alias Maximum 0, so none may come [MQTT-3.1.2-26].
		return &packetError{code: 0x94, text: "PUBLISH: Topic Alias, though none is allowed"}
	case propUser:
		name, err := r.utf8()
		if err != nil {
			return err
		}
		value, err := r.utf8()
		if err != nil {
			return err
		}
		p.userProperties = append(p.userProperties, mapping.UserProperty{Name: name, Value: value})
	default:
		return malformed(fmt.Sprintf("PUBLISH: property 0x%02X is not one of PUBLISH", id))
	}
	return nil
}

// utf8Fault says what makes b no UTF-8 Encoded String, or returns the empty string. Surrogates and
// overlong forms are invalid [MQTT-1.5.4-1], and so is U+0000 [MQTT-1.5.4-2]. A byte order mark is
// an ordinary character that stays [MQTT-1.5.4-3]; control characters are only discouraged.
func utf8Fault(b []byte) string {
	switch {
	case !utf8.Valid(b):
		return "is not valid UTF-8"
	case bytes.IndexByte(b, 0) >= 0:
		return "contains U+0000"
	}
	return ""
}

// wellFormed is b as a string in which every byte that makes it no UTF-8 Encoded String is written as
// \xHH. Where there is none the string is in the memory of b.
//
// [MQTT-4.13.1-1] would have the connection closed. But the fault is a publisher's that the broker has let
// pass, as EMQX up to 6.2 does: after every reconnection the broker would send the same message again, and
// nothing behind it would ever arrive.
func wellFormed(b []byte) string {
	if utf8Fault(b) == "" {
		return unsafe.String(unsafe.SliceData(b), len(b))
	}
	var s strings.Builder
	for len(b) > 0 {
		r, n := utf8.DecodeRune(b)
		if r == 0 || r == utf8.RuneError && n == 1 {
			fmt.Fprintf(&s, `\x%02X`, b[0])
		} else {
			s.Write(b[:n])
		}
		b = b[n:]
	}
	return s.String()
}

// topicFault says what makes b no Topic Name, or returns the empty string.
func topicFault(b []byte) string {
	if text := utf8Fault(b); text != "" {
		return text
	}
	if bytes.IndexByte(b, '+') >= 0 || bytes.IndexByte(b, '#') >= 0 { // [MQTT-3.3.2-2] [MQTT-4.7.1-1]
		return "contains a wildcard"
	}
	return ""
}

// fieldReader takes the basic data types of MQTT 5 section 1.5 from the front of rest. Its errors
// are errShort, or a *packetError for a Variable Byte Integer that is none.
type fieldReader struct{ rest []byte }

// take returns the next n bytes without room to append, so that no field can grow into the next.
func (r *fieldReader) take(n int) ([]byte, error) {
	if n > len(r.rest) {
		return nil, errShort
	}
	b := r.rest[:n:n]
	r.rest = r.rest[n:]
	return b, nil
}

func (r *fieldReader) uint16() (uint16, error) {
	b, err := r.take(2)
	if err != nil {
		return 0, err
	}
	return binary.BigEndian.Uint16(b), nil
}

func (r *fieldReader) uint32() (uint32, error) {
	b, err := r.take(4)
	if err != nil {
		return 0, err
	}
	return binary.BigEndian.Uint32(b), nil
}

// varint reads a Variable Byte Integer of at most four bytes. Forms longer than needed
// ([MQTT-1.5.5-1] binds the sender) are read all the same: their value is not in doubt.
func (r *fieldReader) varint() (uint32, error) {
	var v uint32
	for i := range 4 {
		if i >= len(r.rest) {
			return 0, errShort
		}
		b := r.rest[i]
		v |= uint32(b&0x7F) << (7 * i)
		if b < 0x80 {
			r.rest = r.rest[i+1:]
			return v, nil
		}
	}
	return 0, malformed("PUBLISH: Variable Byte Integer of more than four bytes")
}

func (r *fieldReader) binary() ([]byte, error) {
	n, err := r.uint16()
	if err != nil {
		return nil, err
	}
	return r.take(int(n))
}

func (r *fieldReader) utf8() (string, error) {
	b, err := r.binary()
	if err != nil {
		return "", err
	}
	return wellFormed(b), nil
}
