package mapping

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"
)

// errField is what a row gives that is not of this table.
var errField = errors.New("malformed field")

// JSON renders a row of the table for people, as one JSON object in one line, its members in the
// order of the columns: times as RFC 3339 in UTC, bytea as \x and hexadecimal digits, numbers with
// all their digits. It is an error if the row is not of this table.
func (t *Table) JSON(row *Row) ([]byte, error) {
	out := []byte{'{'}
	fields := row.Fields
	for i, c := range t.Columns {
		if i > 0 {
			out = append(out, ',')
		}
		out = append(appendJSONText(out, c.Name), ':')
		var err error
		if out, fields, err = renderField(out, fields, c.OID); err != nil {
			return nil, fmt.Errorf("render column %s of table %s: %w", c.Name, t.Name, err)
		}
	}
	if len(fields) > 0 {
		return nil, fmt.Errorf("render row of table %s: %d bytes beyond the last column", t.Name, len(fields))
	}
	return append(out, '}'), nil
}

// renderField renders the first of the fields and returns the others.
func renderField(out, fields []byte, oid uint32) ([]byte, []byte, error) {
	if len(fields) < 4 {
		return nil, nil, errField
	}
	size := binary.BigEndian.Uint32(fields)
	fields = fields[4:]
	if size == null {
		return append(out, "null"...), fields, nil
	}
	if uint64(size) > uint64(len(fields)) {
		return nil, nil, errField
	}
	out, err := renderValue(out, fields[:size], oid)
	return out, fields[size:], err
}

func renderValue(out, b []byte, oid uint32) ([]byte, error) {
	base, array, known := typeOf(oid)
	switch {
	case !known:
		return nil, fmt.Errorf("unknown type %d", oid)
	case array:
		return renderArray(out, b)
	case fixedSize[base] != 0 && len(b) != fixedSize[base]:
		return nil, errField
	}
	switch base {
	case typeBool:
		return strconv.AppendBool(out, b[0] != 0), nil
	case typeInt2:
		return strconv.AppendInt(out, int64(int16(binary.BigEndian.Uint16(b))), 10), nil
	case typeInt4:
		return strconv.AppendInt(out, int64(int32(binary.BigEndian.Uint32(b))), 10), nil
	case typeInt8:
		return strconv.AppendInt(out, int64(binary.BigEndian.Uint64(b)), 10), nil
	case typeFloat4:
		return appendFloat(out, float64(math.Float32frombits(binary.BigEndian.Uint32(b))), 32), nil
	case typeFloat8:
		return appendFloat(out, math.Float64frombits(binary.BigEndian.Uint64(b)), 64), nil
	case typeNumeric:
		return renderNumeric(out, b)
	case typeText, typeVarchar:
		return appendJSONText(out, string(b)), nil
	case typeDate:
		micros := int64(int32(binary.BigEndian.Uint32(b))) * day
		return toTime(micros).AppendFormat(out, `"2006-01-02"`), nil
	case typeTimestamp:
		return toTime(int64(binary.BigEndian.Uint64(b))).AppendFormat(out, `"2006-01-02T15:04:05.000000"`), nil
	case typeTimestamptz:
		return append(appendStamp(append(out, '"'), int64(binary.BigEndian.Uint64(b))), '"'), nil
	case typeUUID:
		s := hexText(string(b))
		return fmt.Appendf(out, `"%s-%s-%s-%s-%s"`, s[:8], s[8:12], s[12:16], s[16:20], s[20:]), nil
	case typeInet:
		return renderInet(out, b)
	case typeJSON:
		return compact(out, b)
	case typeJSONB:
		if len(b) == 0 || b[0] != 1 {
			return nil, errField
		}
		return compact(out, b[1:])
	default: // typeBytea
		return append(append(append(out, `"\\x`...), hexText(string(b))...), '"'), nil
	}
}

// fixedSize is the length of the types that have one, in bytes.
var fixedSize = [typeBytea + 1]int{
	typeBool: 1, typeInt2: 2, typeInt4: 4, typeInt8: 8, typeFloat4: 4, typeFloat8: 8,
	typeDate: 4, typeTimestamp: 8, typeTimestamptz: 8, typeUUID: 16,
}

func typeOf(oid uint32) (base baseType, array, known bool) {
	for i, b := range baseTypes {
		if oid == b.oid || oid == b.arrayOID {
			return baseType(i), oid == b.arrayOID, true
		}
	}
	return 0, false, false
}

func renderArray(out, b []byte) ([]byte, error) {
	if len(b) == 12 {
		return append(out, "[]"...), nil
	}
	if len(b) < 20 {
		return nil, errField
	}
	oid, size := binary.BigEndian.Uint32(b[8:]), binary.BigEndian.Uint32(b[12:])
	b = b[20:]
	out = append(out, '[')
	for i := range size {
		if i > 0 {
			out = append(out, ',')
		}
		var err error
		if out, b, err = renderField(out, b, oid); err != nil {
			return nil, err
		}
	}
	if len(b) > 0 {
		return nil, errField
	}
	return append(out, ']'), nil
}

// renderNumeric writes all digits, with no exponent.
func renderNumeric(out, b []byte) ([]byte, error) {
	if len(b) < 8 || len(b) != 8+2*int(binary.BigEndian.Uint16(b)) {
		return nil, errField
	}
	weight := int(int16(binary.BigEndian.Uint16(b[2:])))
	scale := int(binary.BigEndian.Uint16(b[6:]))
	digits := b[8:]
	group := func(place int) uint16 { // of ten thousands to the place
		if i := 2 * (weight - place); i >= 0 && i < len(digits) {
			return binary.BigEndian.Uint16(digits[i:])
		}
		return 0
	}
	if binary.BigEndian.Uint16(b[4:]) != 0 {
		out = append(out, '-')
	}
	out = strconv.AppendUint(out, uint64(group(max(weight, 0))), 10)
	for place := weight - 1; place >= 0; place-- {
		out = fmt.Appendf(out, "%04d", group(place))
	}
	if scale == 0 {
		return out, nil
	}
	out = append(out, '.')
	start := len(out)
	for place := -1; len(out)-start < scale; place-- {
		out = fmt.Appendf(out, "%04d", group(place))
	}
	return out[:start+scale], nil
}

func renderInet(out, b []byte) ([]byte, error) {
	if len(b) < 4 || len(b) != 4+int(b[3]) {
		return nil, errField
	}
	address, ok := netip.AddrFromSlice(b[4:])
	if !ok {
		return nil, errField
	}
	text := address.String()
	if bits := int(b[1]); bits != address.BitLen() {
		text += "/" + strconv.Itoa(bits)
	}
	return appendJSONText(out, text), nil
}

func appendFloat(out []byte, f float64, bits int) []byte {
	if a := math.Abs(f); a != 0 && (a < 1e-6 || a >= 1e21) {
		return strconv.AppendFloat(out, f, 'e', -1, bits)
	}
	return strconv.AppendFloat(out, f, 'f', -1, bits)
}

func appendJSONText(out []byte, s string) []byte {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false) // people read it, no browser does
	if err := e.Encode(s); err != nil {
		return append(out, "null"...) // never: a string always encodes
	}
	return append(out, strings.TrimSuffix(b.String(), "\n")...)
}

// compact puts a JSON text into one line.
func compact(out, raw []byte) ([]byte, error) {
	b := bytes.NewBuffer(out)
	if err := json.Compact(b, raw); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}
