package ingest

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"

	"github.com/eclipse/paho.golang/packets"
	"github.com/mqttpg/bridge/mapping"
)

// unhex turns "00 01 't'" notation into bytes: hexadecimal, blanks ignored, text in quotes.
func unhex(t testing.TB, s string) []byte {
	t.Helper()
	var out []byte
	for i, part := range strings.Split(s, "'") {
		if i%2 == 1 {
			out = append(out, part...)
			continue
		}
		b, err := hex.DecodeString(strings.ReplaceAll(part, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, b...)
	}
	return out
}

func TestDecodePublish(t *testing.T) {
	tests := map[string]struct {
		flags byte
		frame string
		want  publish
	}{
		"QoS 0":                 {0x00, "0001 't' 00 'x'", publish{topic: "t", payload: []byte("x")}},
		"empty payload":         {0x01, "0001 't' 00", publish{retain: true, topic: "t", payload: []byte{}}},
		"QoS 1 has a packet id": {0x02, "0003 'a/b' 1234 00 'x'", publish{qos: 1, topic: "a/b", packetID: 0x1234, payload: []byte("x")}},
		"QoS 2, DUP, retained":  {0x0D, "0003 'a/b' 0001 00", publish{dup: true, qos: 2, retain: true, topic: "a/b", packetID: 1, payload: []byte{}}},
		"payload format":        {0x00, "0001 't' 02 01 01", publish{topic: "t", payload: []byte{}}},
		"message expiry":        {0x00, "0001 't' 05 02 00000e10", publish{topic: "t", payload: []byte{}}},
		"content type":          {0x00, "0001 't' 05 03 0002 'ct'", publish{topic: "t", contentType: "ct", payload: []byte{}}},
		"response topic":        {0x00, "0001 't' 06 08 0003 'a/b'", publish{topic: "t", payload: []byte{}}},
		"correlation data":      {0x00, "0001 't' 05 09 0002 00ff", publish{topic: "t", correlationData: []byte{0, 0xFF}, payload: []byte{}}},
		// [MQTT-3.3.4-4]; paho keeps only the last of them
		"several subscription identifiers": {0x00, "0001 't' 05 0b 01 0b ac02", publish{topic: "t", subscriptionIDs: []uint32{1, 300}, payload: []byte{}}},
		// [MQTT-3.3.2-18]: names repeat and order counts
		"user properties": {
			0x00, "0001 't' 0e 26 0001'a' 0001'1' 26 0001'a' 0001'2' 'p'",
			publish{topic: "t", userProperties: []mapping.UserProperty{{Name: "a", Value: "1"}, {Name: "a", Value: "2"}}, payload: []byte("p")},
		},
		"empty user property":                {0x00, "0001 't' 05 26 0000 0000", publish{topic: "t", userProperties: []mapping.UserProperty{{}}, payload: []byte{}}},
		"byte order mark stays":              {0x00, "0004 efbbbf 't' 00", publish{topic: "\uFEFFt", payload: []byte{}}}, // [MQTT-1.5.4-3]
		"control characters and $ are legal": {0x00, "0003 '$' 01 7f 00", publish{topic: "$\x01\x7F", payload: []byte{}}},
		// What follows a broker should have refused to the publisher. Mosquitto 2.0.11 lets the two wildcards
		// and the format through, EMQX up to 6.2 the rest. Refused here, the message would come again for ever.
		"wildcard in response topic [MQTT-3.3.2-14]": {0x00, "0001 't' 04 08 0001 '#'", publish{topic: "t", payload: []byte{}}},
		"payload format 2":                           {0x00, "0001 't' 02 01 02", publish{topic: "t", payload: []byte{}}},
		"NUL in the topic [MQTT-1.5.4-2]":            {0x00, "0003 'a' 00 'b' 00", publish{topic: `a\x00b`, payload: []byte{}}},
		"Latin-1 in the topic [MQTT-1.5.4-1]":        {0x00, "0003 'd' fc 'r' 00", publish{topic: `d\xFCr`, payload: []byte{}}},
		"surrogate [MQTT-1.5.4-1]":                   {0x00, "0003 eda080 00", publish{topic: `\xED\xA0\x80`, payload: []byte{}}},
		"U+FFFD itself":                              {0x00, "0003 efbfbd 00", publish{topic: "\uFFFD", payload: []byte{}}},
		"overlong UTF-8":                             {0x00, "0002 c080 00", publish{topic: `\xC0\x80`, payload: []byte{}}},
		"content type with NUL":                      {0x00, "0001 't' 04 03 0001 00", publish{topic: "t", contentType: `\x00`, payload: []byte{}}},
		"user property that is not UTF-8": {
			0x00, "0001 't' 07 26 0001 ff 0001 fe", publish{topic: "t", userProperties: []mapping.UserProperty{{Name: `\xFF`, Value: `\xFE`}}, payload: []byte{}},
		},
		"overlong property length is read": {0x00, "0001 't' 8000 'x'", publish{topic: "t", payload: []byte("x")}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := decodePublish(test.flags, unhex(t, test.frame))
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, test.want) {
				t.Errorf("got  %+v\nwant %+v", got, test.want)
			}
		})
	}
}

func TestDecodePublishRefuses(t *testing.T) {
	tests := map[string]struct {
		flags byte
		frame string
		code  byte
	}{
		"QoS 3 [MQTT-3.3.1-4]":                   {0x06, "0001 't' 0001 00", 0x81},
		"DUP on QoS 0 [MQTT-3.3.1-2]":            {0x08, "0001 't' 00", 0x81},
		"packet id 0 [MQTT-2.2.1-3]":             {0x02, "0001 't' 0000 00", 0x81},
		"empty packet":                           {0x00, "", 0x81},
		"topic length only half":                 {0x00, "00", 0x81},
		"topic cut short":                        {0x00, "0005 'abc'", 0x81},
		"packet id cut short":                    {0x02, "0001 't' 00", 0x81},
		"no property length":                     {0x00, "0001 't'", 0x81},
		"property length cut short":              {0x00, "0001 't' 80", 0x81},
		"property length of five bytes":          {0x00, "0001 't' 80808080 01", 0x81},
		"property length beyond the end":         {0x00, "0001 't' 05 26", 0x81},
		"no topic and no alias":                  {0x00, "0000 00 'x'", 0x82},
		"+ in the topic [MQTT-3.3.2-2]":          {0x00, "0003 'a/+' 00", 0x81},
		"# in the topic [MQTT-4.7.1-1]":          {0x00, "0001 '#' 00", 0x81},
		"topic alias, maximum is 0":              {0x00, "0001 't' 03 23 0001", 0x94},
		"topic alias 0 [MQTT-3.3.2-8]":           {0x00, "0000 03 23 0000", 0x94},
		"topic alias cut short":                  {0x00, "0001 't' 02 23 00", 0x81},
		"property of another packet":             {0x00, "0001 't' 05 11 00000001", 0x81},
		"unknown property":                       {0x00, "0001 't' 01 7f", 0x81},
		"property identifier of five bytes":      {0x00, "0001 't' 05 8080808001", 0x81},
		"payload format cut short":               {0x00, "0001 't' 01 01", 0x81},
		"payload format twice":                   {0x00, "0001 't' 04 01 00 01 00", 0x82},
		"message expiry cut short":               {0x00, "0001 't' 04 02 000000", 0x81},
		"message expiry twice":                   {0x00, "0001 't' 0a 02 00000000 02 00000000", 0x82},
		"content type twice":                     {0x00, "0001 't' 06 03 0000 03 0000", 0x82},
		"content type cut short":                 {0x00, "0001 't' 03 03 0001", 0x81},
		"response topic twice":                   {0x00, "0001 't' 06 08 0000 08 0000", 0x82},
		"response topic cut short":               {0x00, "0001 't' 03 08 0001", 0x81},
		"correlation data twice":                 {0x00, "0001 't' 06 09 0000 09 0000", 0x82},
		"correlation data cut short":             {0x00, "0001 't' 02 09 00", 0x81},
		"subscription identifier 0":              {0x00, "0001 't' 02 0b 00", 0x82},
		"subscription identifier cut short":      {0x00, "0001 't' 02 0b 80", 0x81},
		"subscription identifier of five bytes":  {0x00, "0001 't' 06 0b 8080808001", 0x81},
		"user property without a value":          {0x00, "0001 't' 04 26 0001 'a'", 0x81},
		"property runs over the property length": {0x00, "0001 't' 02 26 0001 'a' 0001 'b'", 0x81},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			p, err := decodePublish(test.flags, unhex(t, test.frame))
			var violation *packetError
			if !errors.As(err, &violation) {
				t.Fatalf("accepted as %+v, err %v", p, err)
			}
			if violation.code != test.code {
				t.Errorf("code 0x%02X, want 0x%02X (%v)", violation.code, test.code, err)
			}
		})
	}
}

// The slices of a publication must not let one append to another.
func TestDecodedSlicesDoNotOverlap(t *testing.T) {
	p, err := decodePublish(0, unhex(t, "0001 't' 05 09 0002 'cd' 'payload'"))
	if err != nil {
		t.Fatal(err)
	}
	_ = append(p.correlationData, '!')
	if string(p.payload) != "payload" {
		t.Errorf("payload became %q", p.payload)
	}
}

// FuzzDecodePublish compares the decoder with paho's. Whatever ours accepts, paho must read alike.
// Ours refuses more, and each such case is one of the rules below; the rules are checked on paho's
// reading, so that the decoder cannot refuse for a reason of its own.
func FuzzDecodePublish(f *testing.F) {
	for _, seed := range []struct {
		flags byte
		frame string
	}{
		{0x00, "0001 't' 00 'x'"},
		{0x0D, "0003 'a/b' 0001 00"},
		{0x02, "0001 't' 0000 00"},
		{0x06, "0001 't' 0001 00"},
		{0x00, "0001 't' 02 01 01"},
		{0x00, "0001 't' 05 02 00000e10"},
		{0x00, "0001 't' 05 0b 01 0b ac02 'p'"},
		{0x02, "0001 't' 0001 14 03 0002 'ct' 26 0001'a' 0001'1' 26 0001'a' 0001'2' 'p'"},
		{0x00, "0001 't' 06 08 0003 'a/b'"},
		{0x00, "0001 't' 05 09 0002 00ff 'p'"},
		{0x00, "0001 't' 03 23 0001"},
		{0x00, "0001 ff 00"},
		{0x00, "0002 'a' 00 00"},
		{0x00, "0003 'a/+' 00"},
		{0x00, "0001 't' 8000 'x'"},
		{0x00, "0001 't' 05 26"},
	} {
		f.Add(seed.flags, unhex(f, seed.frame))
	}
	f.Fuzz(func(t *testing.T, flags byte, frame []byte) {
		flags &= 0x0F
		ours, ourErr := decodePublish(flags, bytes.Clone(frame))
		theirs, theirErr := packets.ReadPacket(io.MultiReader(bytes.NewReader(fixedHeader(packets.PUBLISH<<4|flags, len(frame))), bytes.NewReader(frame)))
		if ourErr != nil {
			if theirErr == nil && stricter(flags, frame, theirs.Content.(*packets.Publish)) == "" {
				t.Fatalf("refused without a reason: %v", ourErr)
			}
			return
		}
		if theirErr != nil {
			t.Fatalf("accepted %+v, paho refuses: %v", ours, theirErr)
		}
		p := theirs.Content.(*packets.Publish)
		props := p.Properties
		var user []mapping.UserProperty
		for _, u := range props.User {
			user = append(user, mapping.UserProperty{Name: wellFormed([]byte(u.Key)), Value: wellFormed([]byte(u.Value))})
		}
		var lastID *int // paho keeps one
		if n := len(ours.subscriptionIDs); n > 0 {
			lastID = new(int(ours.subscriptionIDs[n-1]))
		}
		if ours.topic != wellFormed([]byte(p.Topic)) || ours.packetID != p.PacketID || ours.dup != p.Duplicate || ours.retain != p.Retain || ours.qos != p.QoS ||
			!bytes.Equal(ours.payload, p.Payload) || ours.contentType != wellFormed([]byte(props.ContentType)) ||
			!bytes.Equal(ours.correlationData, props.CorrelationData) || !reflect.DeepEqual(ours.userProperties, user) ||
			!reflect.DeepEqual(lastID, props.SubscriptionIdentifier) || props.TopicAlias != nil {
			t.Fatalf("ours   %+v\ntheirs %+v %+v", ours, p, props)
		}
	})
}

// stricter names the rule that paho does not enforce and that this packet breaks, or returns "".
func stricter(flags byte, frame []byte, p *packets.Publish) string {
	props := p.Properties
	switch {
	case p.QoS == 3:
		return "QoS 3"
	case p.Duplicate && p.QoS == 0:
		return "DUP on QoS 0"
	case p.QoS > 0 && p.PacketID == 0:
		return "packet id 0"
	case strings.ContainsAny(p.Topic, "+#"):
		return "topic"
	case p.Topic == "":
		return "no topic"
	case props.TopicAlias != nil:
		return "topic alias"
	case props.SubscriptionIdentifier != nil && *props.SubscriptionIdentifier == 0:
		return "subscription identifier 0"
	}
	return wireFault(flags, frame)
}

// wireFault finds what cannot be seen in paho's result any more: a Variable Byte Integer of more
// than four bytes, a Property Length beyond the packet, a property that comes twice, a subscription
// identifier of 0 before the last, or a number cut short, which paho reads as if zeros followed.
func wireFault(flags byte, frame []byte) string {
	n := 2 + int(frame[0])<<8 + int(frame[1])
	if flags&0x06 != 0 {
		n += 2
	}
	rest := frame[n:]
	length, rest, ok := wireVarint(rest)
	if !ok || length > len(rest) {
		return "property length"
	}
	rest = rest[:length]
	seen := map[byte]bool{}
	for len(rest) > 0 {
		id := rest[0]
		if id != propUser && id != propSubscriptionID && seen[id] {
			return "property twice"
		}
		seen[id] = true
		rest = rest[1:]
		skip := func(n int) { rest = rest[min(n, len(rest)):] }
		text := func() {
			if len(rest) >= 2 {
				skip(2 + int(rest[0])<<8 + int(rest[1]))
			} else {
				skip(2)
			}
		}
		switch id {
		case propPayloadFormat:
			skip(1)
		case propMessageExpiry:
			skip(4)
		case propTopicAlias:
			skip(2)
		case propSubscriptionID:
			var v int
			if v, rest, ok = wireVarint(rest); !ok || v == 0 {
				return "subscription identifier"
			}
		case propUser:
			text()
			text()
		default:
			text()
		}
	}
	return ""
}

func wireVarint(b []byte) (v int, rest []byte, ok bool) {
	for i := range min(4, len(b)) {
		v |= int(b[i]&0x7F) << (7 * i)
		if b[i] < 0x80 {
			return v, b[i+1:], true
		}
	}
	return 0, nil, false
}

// fixedHeader is the fixed header of a packet of n bytes.
func fixedHeader(first byte, n int) []byte {
	b := []byte{first}
	for {
		digit := byte(n & 0x7F)
		if n >>= 7; n > 0 {
			b = append(b, digit|0x80)
			continue
		}
		return append(b, digit)
	}
}

func BenchmarkDecodePublish(b *testing.B) {
	frame := append(unhex(b, "0010 'devices/17/state' 0001 00"), bytes.Repeat([]byte("x"), 200)...)
	for b.Loop() {
		if _, err := decodePublish(0x02, frame); err != nil {
			b.Fatal(err)
		}
	}
}
