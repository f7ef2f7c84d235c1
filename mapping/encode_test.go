package mapping

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"math/big"
	"net/netip"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgtype"
)

// field encodes a raw JSON value for a type and returns what follows the length.
func field(t testing.TB, typ, raw string) ([]byte, problem) {
	t.Helper()
	ct, err := parseType(typ)
	if err != nil {
		t.Fatal(err)
	}
	return encoded(t, ct, rawValue(raw))
}

func encoded(t testing.TB, ct columnType, v value) ([]byte, problem) {
	t.Helper()
	b, p := ct.appendField([]byte("before"), v, &clock{format: "auto"})
	if p.why != "" {
		return nil, p
	}
	b = b[len("before"):]
	size := binary.BigEndian.Uint32(b)
	if size == null {
		return nil, p
	}
	if int(size) != len(b)-4 {
		t.Fatalf("%s: length %d of %d bytes", ct.name, size, len(b)-4)
	}
	return b[4:], p
}

// scan reads a binary value as pgx does, into a new T.
func scan[T any](t testing.TB, typ string, b []byte) T {
	t.Helper()
	ct, err := parseType(typ)
	if err != nil {
		t.Fatal(err)
	}
	var v T
	if err := pgtype.NewMap().Scan(ct.oid(), pgtype.BinaryFormatCode, b, &v); err != nil {
		t.Fatalf("pgx reads %s %x: %v", typ, b, err)
	}
	return v
}

// reads checks that pgx reads back from our field what was meant.
func reads[T any](typ, raw string, want T) func(t *testing.T) {
	return func(t *testing.T) {
		b, p := field(t, typ, raw)
		if p.why != "" {
			t.Fatalf("%s: %s %s", typ, raw, p.why)
		}
		if got := scan[T](t, typ, b); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %s became %v, want %v", typ, raw, got, want)
		}
	}
}

func TestFieldsAreReadByPgx(t *testing.T) {
	instant := time.Date(2026, 1, 2, 3, 4, 5, 678901000, time.UTC)
	for i, test := range []func(*testing.T){
		reads("bool", `true`, true), reads("bool", `"off"`, false), reads("bool", `1`, true), reads("bool", `0.0`, false),
		reads("int2", `-32768`, int16(-32768)), reads("int2", `"32767"`, int16(32767)),
		reads("int4", `2147483647`, int32(2147483647)), reads("int4", `21.0`, int32(21)), reads("int4", `2.1e1`, int32(21)),
		reads("int8", `9223372036854775807`, int64(9223372036854775807)), reads("int8", `-9223372036854775808`, int64(-9223372036854775808)),
		reads("int8", `" +007 "`, int64(7)), reads("int8", `9.223372036854775807e18`, int64(9223372036854775807)), reads("int8", `0e99`, int64(0)),
		reads("float4", `1.5`, float32(1.5)), reads("float4", `3.4028235e38`, float32(3.4028235e38)),
		reads("float8", `21.53`, 21.53), reads("float8", `"1e-300"`, 1e-300), reads("float8", `0.0`, 0.0), reads("float8", `5e-324`, 5e-324),
		reads("text", `"é\u00e9\ud83d\ude00\n"`, "éé😀\n"), reads("text", `21.50`, "21.50"), reads("text", `true`, "true"),
		reads("text", `{"a": [1]}`, `{"a": [1]}`), reads("text", `""`, ""), reads("varchar(3)", `"äöü"`, "äöü"),
		reads("date", `"2026-01-31"`, time.Date(2026, 1, 31, 0, 0, 0, 0, time.UTC)), reads("date", `"0001-01-01"`, time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC)),
		reads("date", `"2000-02-29"`, time.Date(2000, 2, 29, 0, 0, 0, 0, time.UTC)),
		reads("timestamp", `"2026-01-02 03:04:05.678901"`, instant), reads("timestamp", `"2026-01-02T05:04:05.678901+02:00"`, instant),
		reads("uuid", `"01234567-89ab-CDEF-0123-456789abcdef"`, [16]byte{1, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 1, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef}),
		reads("uuid", `"{0123456789abcdef0123456789abcdef}"`, [16]byte{1, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 1, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef}),
		reads("inet", `"192.168.1.7"`, netip.MustParsePrefix("192.168.1.7/32")), reads("inet", `"10.1.2.3/8"`, netip.MustParsePrefix("10.1.2.3/8")),
		reads("inet", `"2001:db8::1/64"`, netip.MustParsePrefix("2001:db8::1/64")), reads("inet", `"::1"`, netip.MustParsePrefix("::1/128")),
		reads("json", `{"a":"\u0000"}`, map[string]any{"a": "\x00"}), reads("jsonb", `[1,"x",null]`, []any{1.0, "x", nil}),
		reads("bytea", `"\\x00fF"`, []byte{0, 255}), reads("bytea", `"äx"`, []byte("äx")), reads("bytea", `""`, []byte{}),
		reads("int4[]", `[1,2.0,"3"]`, []int32{1, 2, 3}), reads("int4[]", `[]`, []int32{}),
		reads("text[]", `["a",null,3]`, []pgtype.Text{{String: "a", Valid: true}, {}, {String: "3", Valid: true}}),
		reads("float8[]", ` [1.5]`[1:], []float64{1.5}), reads("bool[]", `[true,false]`, []bool{true, false}),
		reads("jsonb[]", `[{"a":1},[2]]`, []any{map[string]any{"a": 1.0}, []any{2.0}}),
	} {
		t.Run(fmt.Sprint(i), test)
	}
	for raw, want := range map[string]time.Time{
		`"2026-01-02T03:04:05.6789019Z"`: instant, `1767323045.678901`: instant, `"1767323045678.901"`: instant,
	} {
		b, p := field(t, "timestamptz", raw)
		if p.why != "" {
			t.Errorf("%s %s", raw, p.why)
		} else if got := scan[time.Time](t, "timestamptz", b); !got.Equal(want) {
			t.Errorf("%s became %v", raw, got)
		}
	}
}

func TestMissingIsNull(t *testing.T) {
	for base := range baseTypes {
		ct := plain(baseType(base))
		for _, raw := range []string{"", "null"} {
			if b, p := encoded(t, ct, rawValue(raw)); b != nil || p.why != "" {
				t.Errorf("%s: %q became %x %s", ct.name, raw, b, p.why)
			}
		}
	}
}

// TestNumericIsExact compares what pgx reads with the number as big.Rat reads it, and the digits
// shown with those that were written.
func TestNumericIsExact(t *testing.T) {
	for raw, shown := range map[string]string{
		"0": "0", "-0": "0", "0.000": "0.000", "1": "1", "-1": "-1", "10000": "10000", "9999": "9999", "1.50": "1.50", "0.0001": "0.0001",
		"0.00012": "0.00012", "12345.6789": "12345.6789", "-0.1": "-0.1", "1e3": "1000", "1.5e3": "1500", "1.2345e2": "123.45", "12e-3": "0.012",
		"100e-2": "1.00", "9223372036854775808": "9223372036854775808", "0e5": "0", "0e-5": "0.00000",
		"123456789012345678901234567890.123456789": "123456789012345678901234567890.123456789",
		"1e-30": "0." + strings.Repeat("0", 29) + "1", "1e400": "1" + strings.Repeat("0", 400),
		"1e131071": "1" + strings.Repeat("0", 131071), "1e-16383": "0." + strings.Repeat("0", 16382) + "1",
	} {
		b, p := field(t, "numeric", raw)
		if p.why != "" {
			t.Errorf("%s %s", raw, p.why)
			continue
		}
		if len(raw) < 100 && len(shown) < 1000 {
			n := scan[pgtype.Numeric](t, "numeric", b)
			got := new(big.Rat).SetInt(n.Int)
			power := new(big.Rat).SetInt(new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(max(n.Exp, -n.Exp))), nil))
			if n.Exp < 0 {
				power.Inv(power)
			}
			want, _ := new(big.Rat).SetString(raw)
			if got.Mul(got, power).Cmp(want) != 0 {
				t.Errorf("%s became %s", raw, got)
			}
		}
		if text, err := renderNumeric(nil, b); err != nil || string(text) != shown {
			t.Errorf("%.50s is shown as %.80s, want %.80s: %v", raw, text, shown, err)
		}
	}
}

func TestValuesThatDoNotFit(t *testing.T) {
	for _, test := range []struct{ typ, raw, why string }{
		{"bool", `2`, "neither true nor false"},
		{"bool", `"maybe"`, "neither"},
		{"bool", `[]`, "neither"},
		{"int2", `32768`, "out of range"},
		{"int4", `-2147483649`, "out of range"},
		{"int8", `9223372036854775808`, "out of range"},
		{"int8", `1e30`, "out of range"},
		{"int8", `21.5`, "no whole number"},
		{"int8", `"x"`, "no number"},
		{"int8", `true`, "no number"},
		{"int8", `"0x10"`, "no number"},
		{"int8", `""`, "no number"},
		{"int8", `"1_000"`, "no number"},
		{"int8", `99999999999999999999`, "out of range"},
		{"float8", `1e309`, "out of range"},
		{"float8", `1e-400`, "out of range"},
		{"float8", `"NaN"`, "no number"},
		{"float8", `"Infinity"`, "no number"},
		{"float8", `"-inf"`, "no number"},
		{"float8", `"1e"`, "no number"},
		{"float8", `{}`, "no number"},
		{"float4", `3.5e38`, "out of range"},
		{"float4", `1e-50`, "out of range"},
		{"numeric", `1e131072`, "out of range"},
		{"numeric", `1e-16384`, "out of range"},
		{"numeric", `1e9999999999`, "no number"},
		{"numeric", `"NaN"`, "no number"},
		{"numeric(4,2)", `100`, "more than 2 digits before"},
		{"numeric(4,2)", `1.234`, "more than 2 digits behind"},
		{"numeric(3)", `1.5`, "more than 0 digits behind"},
		{"text", `"a\u0000b"`, "NUL"},
		{"text", `"\ud800"`, "surrogate"},
		{"text", `"\udc00\ud800"`, "surrogate"},
		{"text", `"\ud800x"`, "surrogate"},
		{"text", `"\ud800\u0041"`, "surrogate"},
		{"varchar(2)", `"äöü"`, "longer than 2 characters"},
		{"date", `"2026-02-29"`, "no date"},
		{"date", `"2026-13-01"`, "no date"},
		{"date", `"0000-01-01"`, "no date"},
		{"date", `20260101`, "no date"},
		{"date", `"2026-01-02T00:00:00Z"`, "no date"},
		{"timestamp", `"yesterday"`, "no time"},
		{"timestamptz", `"2026-01-02T03:04:05"`, "no offset"},
		{"timestamptz", `true`, "no time"},
		{"timestamptz", `1e30`, "outside the years"},
		{"uuid", `"0123"`, "no UUID"},
		{"uuid", `"01234567x89ab-cdef-0123-456789abcdef"`, "no UUID"},
		{"uuid", `"g1234567-89ab-cdef-0123-456789abcdef"`, "no UUID"},
		{"uuid", `1`, "no UUID"},
		{"inet", `"fe80::1%eth0"`, "no internet address"},
		{"inet", `"10.0.0.1/33"`, "no internet address"},
		{"inet", `1`, "no internet address"},
		{"jsonb", `{"a":"\u0000"}`, `\u0000`},
		{"jsonb", `["\ud800"]`, "surrogate"},
		{"jsonb", `[1e131072]`, "beyond the range of numeric"},
		{"jsonb", `[0e1073741823]`, "beyond the range of numeric"},
		{"jsonb", "[" + strings.Repeat("1e131071,", 9) + "1]", "written out"},
		{"jsonb", "[" + strings.Repeat("0e-16383,", 99) + "1]", "written out"},
		{"jsonb", `{"\udfff":1}`, "surrogate"},
		{"jsonb", "[" + strings.Repeat("9", 131073) + "]", "beyond the range of numeric"},
		{"bytea", `"\\x0"`, "not hexadecimal"},
		{"bytea", `"\ud800"`, "surrogate"},
		{"bytea", `1`, "no text"},
		{"int4[]", `1`, "is no array"},
		{"int4[]", `[1,"x"]`, `has the element "x", which is no number`},
		{"int4[]", `[[1]]`, "no number"},
		{"text[]", `{}`, "is no array"},
	} {
		_, p := field(t, test.typ, test.raw)
		if !strings.Contains(p.why, test.why) || p.reason != ReasonInvalidValue && p.reason != ReasonInvalidUTF8 {
			t.Errorf("%s: %.60s: %q %q, want %q", test.typ, test.raw, p.reason, p.why, test.why)
		}
		if utf := strings.Contains(test.why, "surrogate") || test.why == "NUL" || test.why == `\u0000`; utf != (p.reason == ReasonInvalidUTF8) {
			t.Errorf("%s: %.60s is rejected as %s", test.typ, test.raw, p.reason)
		}
	}
}

// TestOtherSources covers values that do not come from JSON.
func TestOtherSources(t *testing.T) {
	text := func(s string) value { return value{kind: kindText, str: s} }
	data := func(s string) value { return value{kind: kindBytes, str: s} }
	now := value{kind: kindInstant, micros: 123456}
	for _, test := range []struct {
		typ  string
		v    value
		want string // the field, or what is wrong with it
	}{
		{"jsonb", text(` {"a":1}`), "\x01 {\"a\":1}"},
		{"json", data(`[1]`), `[1]`},
		{"jsonb", text("on"), "is no JSON"},
		{"jsonb", now, "\x01\"2000-01-01T00:00:00.123456Z\""},
		{"jsonb", value{kind: kindNumber, str: "42"}, "\x0142"},
		{"text", now, "2000-01-01T00:00:00.123456Z"},
		{"text", data("abc"), "abc"},
		{"text", data("a\xffc"), "is not UTF-8"},
		{"uuid", data("0123456789abcdef"), "0123456789abcdef"},
		{"uuid", data("0123456789abcde"), "is no UUID"},
		{"bytea", data("\x00\xff"), "\x00\xff"},
		{"timestamptz", now, "\x00\x00\x00\x00\x00\x01\xe2\x40"},
		{"timestamp", now, "\x00\x00\x00\x00\x00\x01\xe2\x40"},
		{"int2", now, "is no number"},
		{"int2", text("7\n"), "\x00\x07"},
		{"date", now, "is no date such as 2026-01-31"},
	} {
		ct, err := parseType(test.typ)
		if err != nil {
			t.Fatal(err)
		}
		b, p := encoded(t, ct, test.v)
		if got := string(b) + p.why; got != test.want {
			t.Errorf("%s: %s became %q, want %q", test.typ, test.v.show(), got, test.want)
		}
	}
}

func TestObjectIDsAreThoseOfPgx(t *testing.T) {
	m := pgtype.NewMap()
	for _, b := range baseTypes {
		if pt, ok := m.TypeForName(b.name); !ok || pt.OID != b.oid {
			t.Errorf("%s has the id %d", b.name, b.oid)
		}
		if pt, ok := m.TypeForName("_" + b.name); !ok || pt.OID != b.arrayOID {
			t.Errorf("%s[] has the id %d", b.name, b.arrayOID)
		}
	}
}

// TestCheckText puts a byte that no text may hold, or only together with others, at every place of a text.
func TestCheckText(t *testing.T) {
	for n := range 20 {
		for at := range n {
			for _, c := range []byte{0, 1, ' ', 0x7f, 0x80, 0xc3, 0xff} {
				b := bytes.Repeat([]byte{'x'}, n)
				b[at] = c
				want := problem{}
				switch {
				case c >= 0x80:
					want.why = "is not UTF-8"
				case c == 0:
					want.why = "holds the character NUL"
				}
				if got := checkText(string(b)); got.why != want.why {
					t.Errorf("%q %s, want %q", b, got.why, want.why)
				}
			}
		}
		if p := checkText(strings.Repeat("x", n) + "é"); p.why != "" {
			t.Errorf("a letter behind %d others %s", n, p.why)
		}
	}
}

// FuzzNumber compares the numbers with those that the standard library reads.
func FuzzNumber(f *testing.F) {
	for _, seed := range []string{"0", "-1.50", "1e-7", "12345678.00001", "+.5", "5.", "9e18", "1e-400", "123456789012345", "-0.00000000000001", "1234567.89012345", "-0", "999999999999999.", "9007199254740993"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, ok := parseDecimal(s)
		if !ok || d.exp > 500 || d.exp < -500 || len(s) > 1000 {
			return
		}
		want, valid := new(big.Rat).SetString(s)
		if !valid {
			t.Fatalf("%q was taken for a number", s)
		}
		b, p := encoded(t, plain(typeNumeric), value{kind: kindText, str: s})
		if p.why != "" {
			t.Fatalf("%q %s", s, p.why)
		}
		text, err := renderNumeric(nil, b)
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := new(big.Rat).SetString(string(text)); !ok || got.Cmp(want) != 0 {
			t.Fatalf("%q became %s", s, text)
		}
		if n, p := (value{kind: kindText, str: s}).integer(-1<<63, 1<<63-1); (p.why == "") != (want.IsInt() && want.Num().IsInt64()) || p.why == "" && want.Num().Int64() != n {
			t.Fatalf("%q became %d %s", s, n, p.why)
		}
		// A number of few digits takes a shorter way.
		number := value{kind: kindNumber, str: s}
		n, p := number.integer(-1<<63, 1<<63-1)
		if m, q := (value{kind: kindText, str: s}).integer(-1<<63, 1<<63-1); n != m || p != q {
			t.Fatalf("%q became %d %s, and as a text %d %s", s, n, p.why, m, q.why)
		}
		if f, ok := shortFloat(s); ok {
			if g, err := strconv.ParseFloat(s, 64); err != nil || math.Float64bits(f) != math.Float64bits(g) {
				t.Fatalf("%q became %v, want %v, %v", s, f, g, err)
			}
		}
	})
}
