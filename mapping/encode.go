package mapping

import (
	"encoding/binary"
	"encoding/hex"
	"math"
	"net/netip"
	"strconv"
	"strings"
	"unicode/utf8"
)

// null is the length of a field that is NULL.
const null = math.MaxUint32

// The fixed fields. Each appends a length and a value.

func appendNull(dst []byte) []byte { return binary.BigEndian.AppendUint32(dst, null) }

func appendInt8(dst []byte, n int64) []byte {
	dst = binary.BigEndian.AppendUint32(dst, 8)
	return binary.BigEndian.AppendUint64(dst, uint64(n))
}

func appendText(dst []byte, s string) []byte {
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(s)))
	return append(dst, s...)
}

func appendJSONB(dst []byte, raw string) []byte {
	dst = binary.BigEndian.AppendUint32(dst, uint32(1+len(raw)))
	dst = append(dst, 1) // the version of jsonb's binary form
	return append(dst, raw...)
}

// appendField appends a value as a field of the type: length and binary form, or NULL for a value
// that is missing. The value is kept exactly, or there is a problem; floats take the nearest value
// they have, as their nature is. clock reads times.
func (t *columnType) appendField(dst []byte, v value, clock *clock) ([]byte, problem) {
	if v.missing() {
		return appendNull(dst), problem{}
	}
	start := len(dst)
	dst = append(dst, 0, 0, 0, 0)
	var p problem
	if t.array {
		dst, p = t.appendArray(dst, v, clock)
	} else {
		dst, p = t.appendValue(dst, v, clock)
	}
	binary.BigEndian.PutUint32(dst[start:], uint32(len(dst)-start-4))
	return dst, p
}

// appendArray appends a JSON array as a one-dimensional array of PostgreSQL.
func (t *columnType) appendArray(dst []byte, v value, clock *clock) ([]byte, problem) {
	if v.kind != kindComposite || v.str[0] != '[' {
		return dst, invalid("is no array")
	}
	element := t.element()
	start := len(dst)
	var (
		size  uint32
		nulls uint32
		p     problem
	)
	dst = binary.BigEndian.AppendUint32(dst, 1) // dimensions
	dst = append(dst, 0, 0, 0, 0)               // whether there are nulls: below
	dst = binary.BigEndian.AppendUint32(dst, element.oid())
	dst = append(dst, 0, 0, 0, 0, 0, 0, 0, 1) // size: below; the first index is 1
	for item := range elements(v.str, 0, nil, nil) {
		e := rawValue(item)
		if e.missing() {
			nulls = 1
		}
		if dst, p = element.appendField(dst, e, clock); p.why != "" {
			p.why = "has the element " + e.show() + ", which " + p.why
		}
		if size++; p.why != "" {
			break
		}
	}
	binary.BigEndian.PutUint32(dst[start+4:], nulls)
	binary.BigEndian.PutUint32(dst[start+12:], size)
	if size == 0 {
		dst = dst[:start+12]
		dst[start+3] = 0 // an empty array has no dimension
	}
	return dst, p
}

func (t *columnType) appendValue(dst []byte, v value, clock *clock) ([]byte, problem) {
	switch t.base {
	case typeBool:
		b, ok := v.bool()
		if !ok {
			return dst, invalid("is neither true nor false")
		}
		return append(dst, b), problem{}
	case typeInt2:
		n, p := v.integer(math.MinInt16, math.MaxInt16)
		return binary.BigEndian.AppendUint16(dst, uint16(n)), p
	case typeInt4:
		n, p := v.integer(math.MinInt32, math.MaxInt32)
		return binary.BigEndian.AppendUint32(dst, uint32(n)), p
	case typeInt8:
		n, p := v.integer(math.MinInt64, math.MaxInt64)
		return binary.BigEndian.AppendUint64(dst, uint64(n)), p
	case typeFloat4:
		f, p := v.float(32)
		return binary.BigEndian.AppendUint32(dst, math.Float32bits(float32(f))), p
	case typeFloat8:
		f, p := v.float(64)
		return binary.BigEndian.AppendUint64(dst, math.Float64bits(f)), p
	case typeNumeric:
		return t.appendNumeric(dst, v)
	case typeText, typeVarchar:
		s, p := v.text()
		if p.why == "" && t.limited && utf8.RuneCountInString(s) > t.length {
			p = invalid("is longer than " + strconv.Itoa(t.length) + " characters")
		}
		return append(dst, s...), p
	case typeDate:
		days, ok := readDate(strings.TrimSpace(v.str))
		if v.kind != kindText || !ok {
			return dst, invalid("is no date such as 2026-01-31")
		}
		return binary.BigEndian.AppendUint32(dst, uint32(int32(days))), problem{}
	case typeTimestamp, typeTimestamptz:
		micros, why := t.time(v, clock)
		return binary.BigEndian.AppendUint64(dst, uint64(micros)), invalid(why)
	case typeUUID:
		id, ok := v.uuid()
		if !ok {
			return dst, invalid("is no UUID")
		}
		return append(dst, id[:]...), problem{}
	case typeInet:
		return v.appendInet(dst)
	case typeJSON, typeJSONB:
		return t.appendJSON(dst, v)
	default: // typeBytea
		return v.appendBytea(dst)
	}
}

// number takes the decimal a value stands for: a number, or a text that is one.
func (v value) number() (decimal, problem) {
	if v.kind == kindNumber || v.kind == kindText {
		if d, ok := parseDecimal(strings.TrimSpace(v.str)); ok {
			return d, problem{}
		}
	}
	return decimal{}, invalid("is no number")
}

func (v value) integer(least, most int64) (int64, problem) {
	if neg, whole, places, ok := shortNumber(v.str); ok && places == 0 && v.kind == kindNumber {
		n := int64(whole)
		if neg {
			n = -n
		}
		if least <= n && n <= most {
			return n, problem{}
		}
	}
	d, p := v.number()
	if p.why != "" {
		return 0, p
	}
	n, exact, ok := d.scaled(0)
	switch {
	case !ok || n < least || n > most:
		return 0, invalid("is out of range")
	case !exact:
		return 0, invalid("is no whole number")
	}
	return n, problem{}
}

func (v value) float(bits int) (float64, problem) {
	if bits == 64 && v.kind == kindNumber {
		if f, ok := shortFloat(v.str); ok {
			return f, problem{}
		}
	}
	d, p := v.number()
	if p.why != "" {
		return 0, p
	}
	f, err := strconv.ParseFloat(strings.TrimSpace(v.str), bits)
	if first, last := d.significant(); err != nil || f == 0 && first != last {
		return 0, invalid("is out of range") // too large, or so small that it would become 0
	}
	return f, problem{}
}

// shortFloat is the float64 nearest to a number of few digits: both the digits and the power of ten are
// floats without error, so that the one division is all that rounds.
func shortFloat(s string) (float64, bool) {
	neg, whole, places, ok := shortNumber(s)
	if !ok {
		return 0, false
	}
	f := float64(whole) / tens[places]
	if neg {
		f = -f
	}
	return f, true
}

func (t *columnType) appendNumeric(dst []byte, v value) ([]byte, problem) {
	d, p := v.number()
	if p.why != "" {
		return dst, p
	}
	scale := d.scale()
	if t.limited {
		scale = t.scale
		if first, last := d.significant(); first < last {
			switch {
			case last-d.point() > t.scale:
				return dst, invalid("has more than " + strconv.Itoa(t.scale) + " digits behind the point")
			case d.point()-first > t.precision-t.scale:
				return dst, invalid("has more than " + strconv.Itoa(t.precision-t.scale) + " digits before the point")
			}
		}
	} else if !d.fitsNumeric() {
		return dst, invalid("is out of range")
	}
	return d.appendNumeric(dst, scale), problem{}
}

// bool is 1 or 0: of a boolean, of the numbers 1 and 0, and of the words PostgreSQL knows.
func (v value) bool() (b byte, ok bool) {
	switch v.kind {
	case kindBool, kindText:
		switch strings.ToLower(strings.TrimSpace(v.str)) {
		case "true", "t", "yes", "y", "on", "1":
			return 1, true
		case "false", "f", "no", "n", "off", "0":
			return 0, true
		}
	case kindNumber:
		n, p := v.integer(0, 1)
		return byte(n), p.why == ""
	}
	return 0, false
}

// time reads a time. A timestamp without time zone shows the clock of UTC, except that a stamp
// without an offset is kept as it is.
func (t *columnType) time(v value, clock *clock) (int64, string) {
	if t.base == typeTimestamp && v.kind == kindText {
		if s, ok := readStamp(strings.TrimSpace(v.str)); ok && s.zoned == zoneNone {
			return inRange(s.micros)
		}
	}
	return clock.parse(v)
}

// uuid takes 16 bytes, or 32 hexadecimal digits with the usual hyphens, or none, and maybe braces.
func (v value) uuid() (id [16]byte, ok bool) {
	if v.kind == kindBytes && len(v.str) == 16 {
		return [16]byte([]byte(v.str)), true
	}
	s := strings.TrimSpace(v.str)
	if len(s) > 2 && s[0] == '{' && s[len(s)-1] == '}' {
		s = s[1 : len(s)-1]
	}
	if v.kind != kindText {
		return id, false
	}
	return readUUID(s)
}

// readUUID reads 32 hexadecimal digits, with the usual hyphens or none.
func readUUID(s string) (id [16]byte, ok bool) {
	places := &plainUUID
	switch {
	case len(s) == 36 && s[8] == '-' && s[13] == '-' && s[18] == '-' && s[23] == '-':
		places = &hyphenedUUID
	case len(s) != 32:
		return id, false
	}
	wrong := byte(0)
	for i := range id {
		two := s[places[i]:]
		high, low := hexDigits[two[0]], hexDigits[two[1]]
		id[i] = high<<4 | low&15
		wrong |= high | low
	}
	return id, wrong < 16
}

// Where the bytes of a UUID stand in its text.
var (
	plainUUID    = [16]uint8{0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30}
	hyphenedUUID = [16]uint8{0, 2, 4, 6, 9, 11, 14, 16, 19, 21, 24, 26, 28, 30, 32, 34}
)

func (v value) appendInet(dst []byte) ([]byte, problem) {
	s := strings.TrimSpace(v.str)
	prefix, err := netip.ParsePrefix(s)
	if !strings.Contains(s, "/") {
		var address netip.Addr
		address, err = netip.ParseAddr(s)
		prefix = netip.PrefixFrom(address, address.BitLen())
	}
	if v.kind != kindText || err != nil || strings.Contains(s, "%") { // PostgreSQL keeps no zone
		return dst, invalid("is no internet address")
	}
	family := byte(2)
	if prefix.Addr().Is6() {
		family = 3
	}
	address := prefix.Addr().AsSlice()
	dst = append(dst, family, byte(prefix.Bits()), 0, byte(len(address)))
	return append(dst, address...), problem{}
}

// appendJSON appends JSON: of the payload as it was written; of other texts, if they are JSON
// themselves, as a cast in PostgreSQL would.
func (t *columnType) appendJSON(dst []byte, v value) ([]byte, problem) {
	raw := v.raw
	if raw == "" {
		switch v.kind {
		case kindText, kindBytes:
			if p := checkJSON(v.str); p.why != "" {
				return dst, invalid("is no JSON")
			}
			raw = v.str
		case kindInstant:
			raw = `"` + string(appendStamp(nil, v.micros)) + `"`
		default:
			raw = v.str
		}
	}
	if t.base == typeJSONB {
		dst = append(dst, 1) // the version of jsonb's binary form
		if why := jsonbRefuses(raw); why != "" {
			p := invalid(why)
			if strings.Contains(why, "surrogate") || strings.Contains(why, "u0000") {
				p.reason = ReasonInvalidUTF8
			}
			return dst, p
		}
	}
	return append(dst, raw...), problem{}
}

// appendBytea appends bytes as they are, and those of a text: the ones that it spells in
// hexadecimal behind \x, as PostgreSQL writes bytea, else its UTF-8.
func (v value) appendBytea(dst []byte) ([]byte, problem) {
	switch v.kind {
	case kindBytes:
		return append(dst, v.str...), problem{}
	case kindText:
		if digits, ok := strings.CutPrefix(v.str, `\x`); ok {
			b, err := hex.DecodeString(digits)
			if err != nil {
				return dst, invalid(`begins with \x, but is not hexadecimal`)
			}
			return append(dst, b...), problem{}
		}
		return append(dst, v.str...), problem{}
	case kindBadText:
		return dst, problem{ReasonInvalidUTF8, "holds an unpaired surrogate"}
	}
	return dst, invalid("is no text")
}
