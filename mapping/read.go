package mapping

import (
	"encoding/binary"
	"math/bits"
	"strings"
	"unsafe"
)

// reader reads a JSON text (RFC 8259) in one pass: it looks at every byte whether it belongs there, and
// on its way puts what stands at the nodes of a tree into their slots.
//
// Its methods take the index at which something begins and return the one behind it, or fault.
type reader struct {
	text  string
	slots []place
	wide  bool // a string holds bytes beyond ASCII, which nobody has looked at
}

// place is where a value stands in the text. The zero one is nowhere: no value is empty.
type place struct{ begin, end uint32 }

// of gives the value from its text; empty if it is nowhere.
func (p place) of(text string) string { return text[p.begin:p.end] }

const fault = -1

// document reads a whole text, white space around it left away, and reports whether it is JSON, apart
// from the bytes of its strings being UTF-8.
func (r *reader) document(text string, n *node, slots []place) bool {
	r.text, r.slots, r.wide = text, slots, false
	return r.value(0, n, 0) == len(text)
}

// value reads the value that begins at i. n is the node it stands at; nil if nobody asks for anything
// in it. Of members with the same name the last counts, as in jsonb.
func (r *reader) value(i int, n *node, depth int) int {
	if i >= len(r.text) {
		return fault
	}
	if n != nil && r.slots[n.slot].end > 0 {
		clear(r.slots[n.slot:n.end])
	}
	end := fault
	switch c := r.text[i]; c {
	case '"':
		end, _ = r.str(i)
	case '{':
		if depth < maxDepth {
			end = r.object(i, n, depth+1)
		}
	case '[':
		if depth < maxDepth {
			end = r.array(i, n, depth+1)
		}
	case 't':
		end = r.word(i, "true")
	case 'f':
		end = r.word(i, "false")
	case 'n':
		end = r.word(i, "null")
	default:
		end = r.number(i)
	}
	if n != nil && end > i {
		r.slots[n.slot] = place{uint32(i), uint32(end)}
	}
	return end
}

func (r *reader) word(i int, word string) int {
	if !strings.HasPrefix(r.text[i:], word) {
		return fault
	}
	return i + len(word)
}

func (r *reader) object(i int, n *node, depth int) int {
	text := r.text
	if i = skipBlanks(text, i+1); i < len(text) && text[i] == '}' {
		return i + 1
	}
	for i < len(text) && text[i] == '"' {
		end, escaped := r.str(i)
		if end == fault {
			return fault
		}
		var member *node
		if n != nil && n.names != nil {
			member = n.member(text[i:end], escaped)
		}
		if i = skipBlanks(text, end); i >= len(text) || text[i] != ':' {
			return fault
		}
		if i = r.value(skipBlanks(text, i+1), member, depth); i == fault {
			return fault
		}
		if i = skipBlanks(text, i); i >= len(text) {
			return fault
		}
		if text[i] == '}' {
			return i + 1
		}
		if text[i] != ',' {
			return fault
		}
		i = skipBlanks(text, i+1)
	}
	return fault
}

func (r *reader) array(i int, n *node, depth int) int {
	text, start := r.text, i
	if i = skipBlanks(text, i+1); i < len(text) && text[i] == ']' {
		return i + 1
	}
	for size := 0; ; {
		if i = r.value(i, n.element(size), depth); i == fault {
			return fault
		}
		size++
		if i = skipBlanks(text, i); i >= len(text) {
			return fault
		}
		if text[i] == ']' {
			r.backward(start, n, depth, size)
			return i + 1
		}
		if text[i] != ',' {
			return fault
		}
		i = skipBlanks(text, i+1)
	}
}

// backward reads again those elements of an array that are counted from its end, now that the end is
// known.
func (r *reader) backward(start int, n *node, depth, size int) {
	if n == nil || !n.backward {
		return
	}
	i := skipBlanks(r.text, start+1)
	for at := -size; at < 0; at++ {
		i = r.value(i, n.element(at), depth)
		i = skipBlanks(r.text, skipBlanks(r.text, i)+1) // behind the comma
	}
}

// str reads a string, and tells whether it holds escapes.
func (r *reader) str(i int) (end int, escaped bool) {
	text := unsafe.Slice(unsafe.StringData(r.text), len(r.text)) // only read
	for i++; i < len(text); {
		// Eight bytes at once: the high bit of a byte becomes set where it is beyond ASCII, or borrows as
		// something greater is taken from it, because it is a control character, a quote or a backslash.
		// Bytes behind the first such one may be borrowed from, so only that one counts.
		if i+8 <= len(text) {
			w := binary.LittleEndian.Uint64(text[i:])
			special := (w | (w - ones*' ') | (w ^ ones*'"' - ones) | (w ^ ones*'\\' - ones)) & (ones << 7)
			if special == 0 {
				i += 8
				continue
			}
			i += bits.TrailingZeros64(special) >> 3
		}
		switch c := text[i]; {
		case c == '"':
			return i + 1, escaped
		case c == '\\':
			n := escapeLength(r.text[i:])
			if n == 0 {
				return fault, escaped
			}
			i, escaped = i+n, true
		case c < ' ':
			return fault, escaped
		default:
			r.wide = r.wide || c >= 0x80
			i++
		}
	}
	return fault, escaped
}

// ones has a 1 in each of its bytes.
const ones = 0x0101010101010101

// escapeLength is the length of the escape sequence that s begins with, 0 if there is none.
func escapeLength(s string) int {
	if len(s) < 2 {
		return 0
	}
	switch s[1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return 2
	case 'u':
		if len(s) >= 6 && hexDigits[s[2]]|hexDigits[s[3]]|hexDigits[s[4]]|hexDigits[s[5]] < 16 {
			return 6
		}
	}
	return 0
}

func (r *reader) number(i int) int {
	text := r.text
	if text[i] == '-' {
		i++
	}
	if i < len(text) && text[i] == '0' {
		i++
	} else if i = digits(text, i); i == fault {
		return fault
	}
	if i < len(text) && text[i] == '.' {
		if i = digits(text, i+1); i == fault {
			return fault
		}
	}
	if i < len(text) && text[i]|0x20 == 'e' {
		i++
		if i < len(text) && (text[i] == '+' || text[i] == '-') {
			i++
		}
		return digits(text, i)
	}
	return i
}

// digits steps over at least one digit.
func digits(text string, i int) int {
	start := i
	for i < len(text) && isDigit(text[i]) {
		i++
	}
	if i == start {
		return fault
	}
	return i
}

func skipBlanks(text string, i int) int {
	for i < len(text) && text[i] <= ' ' && blanks>>text[i]&1 == 1 {
		i++
	}
	return i
}

const blanks = uint64(1<<' ' | 1<<'\t' | 1<<'\n' | 1<<'\r')
