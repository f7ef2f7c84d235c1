package mapping

import (
	"encoding/binary"
	"strings"
	"unicode"
	"unicode/utf8"
	"unsafe"
)

// value is what an expression found in a message. The zero value is absent.
type value struct {
	kind   kind
	clean  bool   // str is known to be UTF-8 without NUL
	str    string // text, digits, true or false, raw JSON, or bytes, as kind says
	raw    string // the raw JSON it was read from; empty if it is from elsewhere
	micros int64  // of kindInstant: microseconds since 2000-01-01 UTC
}

type kind uint8

const (
	kindAbsent    kind = iota
	kindNull           // JSON null
	kindBool           // str is true or false
	kindNumber         // str is the number as JSON writes it
	kindText           // str is the text, possibly not UTF-8 or with NUL
	kindBadText        // a JSON string with an unpaired surrogate: no text at all
	kindComposite      // str is a raw JSON object or array
	kindBytes          // str holds the bytes
	kindInstant        // micros: the time of receipt
)

// missing reports whether the value becomes NULL.
func (v value) missing() bool { return v.kind <= kindNull }

// show renders the value for a Detail, cut short.
func (v value) show() string {
	const most = 80
	switch v.kind {
	case kindAbsent:
		return "nothing"
	case kindNull:
		return "null"
	case kindInstant:
		return string(appendStamp(nil, v.micros))
	case kindBytes:
		if !utf8.ValidString(v.str) {
			return `\x` + cut(hexText(v.str[:min(len(v.str), most)]), most)
		}
	}
	if v.raw != "" {
		return cut(v.raw, most)
	}
	if v.kind == kindText || v.kind == kindBytes {
		return "'" + cut(v.str, most) + "'"
	}
	return cut(v.str, most)
}

// text is the value as a text column keeps it.
func (v value) text() (string, problem) {
	switch v.kind {
	case kindBadText:
		return "", problem{ReasonInvalidUTF8, "holds an unpaired surrogate"}
	case kindInstant:
		return string(appendStamp(nil, v.micros)), problem{}
	}
	if !v.clean {
		if p := checkText(v.str); p.why != "" {
			return "", p
		}
	}
	return v.str, problem{}
}

// checkText says what hinders s from being a text of PostgreSQL.
func checkText(s string) problem {
	switch {
	case plainASCII(s):
		return problem{}
	case !utf8.ValidString(s):
		return problem{ReasonInvalidUTF8, "is not UTF-8"}
	case strings.IndexByte(s, 0) >= 0:
		return problem{ReasonInvalidUTF8, "holds the character NUL"}
	}
	return problem{}
}

// plainASCII reports whether s holds neither NUL nor bytes beyond ASCII, as most texts.
func plainASCII(s string) bool {
	b := unsafe.Slice(unsafe.StringData(s), len(s)) // only read
	special := uint64(0)
	for len(b) >= 8 {
		w := binary.LittleEndian.Uint64(b)
		special |= w | (w - ones) // a NUL borrows
		b = b[8:]
	}
	for _, c := range b {
		if c == 0 || c >= utf8.RuneSelf {
			return false
		}
	}
	return special&(ones<<7) == 0
}

// problem is why a value, a row or a message is rejected; none if why is empty.
type problem struct {
	reason Reason
	why    string
}

// invalid is the problem of a value that does not fit.
func invalid(why string) problem { return problem{ReasonInvalidValue, why} }

// rejection makes a problem the outcome, with a detail that is fit to be stored and shown.
func (p problem) rejection() *Rejection {
	detail := strings.Map(func(r rune) rune { // invalid bytes come as U+FFFD already
		switch {
		case r == 0:
			return utf8.RuneError
		case unicode.IsControl(r):
			return ' '
		}
		return r
	}, p.why)
	return &Rejection{Reason: p.reason, Detail: strings.Clone(cut(detail, MaxDetail))} // the message may be gone before it
}

// cut shortens s to at most n bytes, not within a character, and marks that it did.
func cut(s string, n int) string {
	const mark = "…"
	if len(s) <= n {
		return s
	}
	n -= len(mark)
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + mark
}

func hexText(s string) string {
	const digits = "0123456789abcdef"
	b := make([]byte, 0, 2*len(s))
	for i := range len(s) {
		b = append(b, digits[s[i]>>4], digits[s[i]&15])
	}
	return string(b)
}
