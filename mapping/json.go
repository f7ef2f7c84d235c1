package mapping

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"math/bits"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// This file is all that the package knows of JSON texts. Values stay as they were written
// ("raw"), so that no digit of a number is lost.

const (
	// maxDepth is how deep arrays and objects may nest. It keeps recursion here and in PostgreSQL
	// far from the end of any stack.
	maxDepth = 512

	// maxJSONB is the longest JSON text that is offered to PostgreSQL as jsonb. Its binary form
	// can take six times the room of the text and must stay below 256 MiB.
	maxJSONB = 32 << 20
)

// checkJSON says what hinders text from being a JSON text (RFC 8259) of bearable depth.
func checkJSON(text string) problem {
	var r reader
	return r.check(text, nil, nil)
}

// check reads a JSON text into the slots of the tree below n, and says what hinders it from being one.
func (r *reader) check(text string, n *node, slots []place) problem {
	switch {
	case r.document(trimJSON(text), n, slots) && (!r.wide || utf8.ValidString(text)):
		return problem{}
	case !utf8.ValidString(text):
		return problem{ReasonInvalidUTF8, "the payload is not UTF-8"}
	case tooDeep(text):
		return problem{ReasonInvalidPayload, fmt.Sprintf("the payload nests deeper than %d levels", maxDepth)}
	}
	return problem{ReasonInvalidPayload, "the payload is not JSON: " + jsonError(text)}
}

// jsonError asks the slower reader, which knows where the mistake is.
func jsonError(text string) string {
	var (
		raw    json.RawMessage
		syntax *json.SyntaxError
	)
	if errors.As(json.Unmarshal([]byte(text), &raw), &syntax) {
		return fmt.Sprintf("byte %d: %s", syntax.Offset, syntax.Error())
	}
	return "malformed"
}

// tooDeep reports whether arrays and objects nest deeper than maxDepth. Up to the first mistake of
// a malformed text it sees the same depth as a reader would.
func tooDeep(text string) bool {
	if strings.Count(text, "[")+strings.Count(text, "{") <= maxDepth {
		return false
	}
	depth := 0
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '"':
			i = stringEnd(text, i) - 1
		case '[', '{':
			if depth++; depth > maxDepth {
				return true
			}
		case ']', '}':
			depth--
		}
	}
	return false
}

// stringEnd is the index behind the string that begins with a quote at start.
func stringEnd(text string, start int) int {
	for i := start + 1; i < len(text); i++ {
		switch text[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
	return len(text)
}

// trimJSON takes the white space of RFC 8259 from both ends.
func trimJSON(text string) string {
	text = text[skipBlanks(text, 0):]
	end := len(text)
	for end > 0 && skipBlanks(text[:end], end-1) == end {
		end--
	}
	return text[:end]
}

// rawValue classifies a raw value of a text that is JSON; the empty one is absent. A NUL it can have only
// as an escape.
func rawValue(raw string) value {
	if raw == "" {
		return value{}
	}
	switch raw[0] {
	case 'n':
		return value{kind: kindNull, raw: raw}
	case 't', 'f':
		return value{kind: kindBool, clean: true, str: raw, raw: raw}
	case '{', '[':
		return value{kind: kindComposite, clean: true, str: raw, raw: raw}
	case '"':
		if strings.IndexByte(raw, '\\') < 0 {
			return value{kind: kindText, clean: true, str: raw[1 : len(raw)-1], raw: raw}
		}
		text, ok := unescape(raw)
		if !ok {
			return value{kind: kindBadText, raw: raw}
		}
		return value{kind: kindText, str: text, raw: raw}
	}
	return value{kind: kindNumber, clean: true, str: raw, raw: raw}
}

// unescape decodes a raw JSON string. It is not ok if a surrogate stands alone: no text has such a
// character.
func unescape(raw string) (text string, ok bool) {
	raw = raw[1 : len(raw)-1]
	b := make([]byte, 0, len(raw))
	for {
		i := strings.IndexByte(raw, '\\')
		if i < 0 {
			return string(append(b, raw...)), true
		}
		b = append(b, raw[:i]...)
		escape := raw[i+1]
		raw = raw[i+2:]
		switch escape {
		case 'b':
			b = append(b, '\b')
		case 'f':
			b = append(b, '\f')
		case 'n':
			b = append(b, '\n')
		case 'r':
			b = append(b, '\r')
		case 't':
			b = append(b, '\t')
		case 'u':
			r := hex4(raw)
			raw = raw[4:]
			if utf16.IsSurrogate(r) {
				if !strings.HasPrefix(raw, `\u`) {
					return "", false
				}
				if r = utf16.DecodeRune(r, hex4(raw[2:])); r == utf8.RuneError {
					return "", false
				}
				raw = raw[6:]
			}
			b = utf8.AppendRune(b, r)
		default: // " \ /
			b = append(b, escape)
		}
	}
}

// hex4 reads the four digits behind \u.
func hex4(s string) rune { // the text is valid: there are four
	return rune(hexDigits[s[0]])<<12 | rune(hexDigits[s[1]])<<8 | rune(hexDigits[s[2]])<<4 | rune(hexDigits[s[3]])
}

// hexDigits are the values of hexadecimal digits, more than 15 of all other bytes.
var hexDigits = func() (t [256]byte) {
	for i := range t {
		t[i] = 0xff
	}
	for i, c := range []byte("0123456789abcdef") {
		t[c], t[bytes.ToUpper([]byte{c})[0]] = byte(i), byte(i)
	}
	return t
}()

// isEscape reports whether s is one escape sequence of a JSON string.
func isEscape(s string) bool { return len(s) > 1 && s[0] == '\\' && escapeLength(s) == len(s) }

// maxGrown bounds by how many bytes PostgreSQL may write a jsonb longer than it came. It has no
// exponents: 9 bytes of 1e131071 are stored in 12 and written in 131072, and a row with some thousands of
// them is beyond the 1 GB of a value, so that no query that reads it ever succeeds.
const maxGrown = 1 << 20

// jsonbRefuses says what in a valid JSON text PostgreSQL's jsonb cannot hold, or not give back; empty if nothing.
func jsonbRefuses(text string) string {
	if len(text) > maxJSONB {
		return fmt.Sprintf("is longer than %d MiB", maxJSONB>>20)
	}
	// Short texts with neither \u nor an exponent, nearly all there are, need no closer look.
	if len(text) < 15000 && !hasExponent(text) && !strings.Contains(text, `\u`) {
		return ""
	}
	grown := 0
	for i := 0; i < len(text); {
		switch c := text[i]; {
		case c == '"':
			end := stringEnd(text, i)
			if raw := text[i:end]; strings.Contains(raw, `\u`) {
				if s, ok := unescape(raw); !ok {
					return `holds an unpaired surrogate (\ud800 to \udfff)`
				} else if strings.IndexByte(s, 0) >= 0 {
					return `holds the character \u0000`
				}
			}
			i = end
		case c == '-' || isDigit(c):
			end := i + 1
			for end < len(text) && strings.IndexByte("0123456789+-.eE", text[end]) >= 0 {
				end++
			}
			d, ok := parseDecimal(text[i:end])
			if !ok || !d.fitsNumeric() {
				return "holds a number beyond the range of numeric: " + cut(text[i:end], 40)
			}
			if grown += max(0, d.point()) + d.scale() - (end - i); grown > maxGrown {
				return fmt.Sprintf("holds numbers that are longer by more than %d MiB when written out", maxGrown>>20)
			}
			i = end
		default:
			i++
		}
	}
	return ""
}

// hasExponent reports whether a number of the text may have one.
func hasExponent(text string) bool {
	for i := 1; i < len(text); i++ {
		if text[i]|0x20 == 'e' && isDigit(text[i-1]) {
			return true
		}
	}
	return false
}

// node is a place in a JSON document that some expression names. The nodes form a tree and are
// numbered in preorder: a document is read once, and each value found is put into the slot of its node.
type node struct {
	slot, end int // slots of the node and, up to end, of all below it
	members   []branch
	elements  []branch
	names     []int // finds members: by hash of the name, the first of a chain, as its index + 1
	backward  bool  // some index counts from the end
}

type branch struct {
	name  string
	index int
	node  *node
	next  int // in the chain of names with the same hash
}

// at gives the node that a path leads to, making it where needed.
func (n *node) at(path []step) *node {
	for _, s := range path {
		n = n.child(s)
	}
	return n
}

func (n *node) child(s step) *node {
	list := &n.elements
	if s.member {
		list = &n.members
	}
	for _, b := range *list {
		if b.name == s.name && b.index == s.index {
			return b.node
		}
	}
	child := &node{}
	*list = append(*list, branch{name: s.name, index: s.index, node: child})
	n.backward = n.backward || s.index < 0
	return child
}

// number gives the nodes their slots, from first on, and returns the next free one. Then the tree can
// be read with.
func (n *node) number(first int) int {
	n.slot = first
	first++
	n.names = nil
	if len(n.members) > 0 {
		n.names = make([]int, 1<<bits.Len(uint(2*len(n.members))))
	}
	for i := range n.members {
		b := &n.members[i]
		first = b.node.number(first)
		chain := &n.names[nameHash(b.name)&uint(len(n.names)-1)]
		b.next, *chain = *chain, i+1
	}
	for _, b := range n.elements {
		first = b.node.number(first)
	}
	n.end = first
	return first
}

// nameHash tells the names of members apart, as they are in practice, at little cost.
func nameHash(name string) uint {
	n := uint(len(name))
	if n == 0 {
		return 0
	}
	return n + uint(name[0])*3 + uint(name[n/2])*5 + uint(name[n-1])*17
}

// member is the node of a member, given its name raw; nil if no expression names it.
func (n *node) member(raw string, escaped bool) *node {
	name := raw[1 : len(raw)-1]
	if escaped {
		var ok bool
		if name, ok = unescape(raw); !ok {
			return nil
		}
	}
	if len(n.names) == 0 {
		return nil
	}
	for i := n.names[nameHash(name)&uint(len(n.names)-1)]; i != 0; i = n.members[i-1].next {
		if n.members[i-1].name == name {
			return n.members[i-1].node
		}
	}
	return nil
}

// element is the node of an element of an array; nil if no expression names it.
func (n *node) element(index int) *node {
	if n == nil {
		return nil
	}
	for i := range n.elements {
		if n.elements[i].index == index {
			return n.elements[i].node
		}
	}
	return nil
}

// elements gives the elements of the array that begins at start, each after what the tree below item asks
// for has been put into its slots; item may be nil.
func elements(text string, start int, item *node, slots []place) iter.Seq[string] {
	return func(yield func(string) bool) {
		r := reader{text: text, slots: slots}
		for i := skipBlanks(text, start+1); text[i] != ']'; {
			end := r.value(i, item, 0)
			if !yield(text[i:end]) {
				return
			}
			if i = skipBlanks(text, end); text[i] == ',' {
				i = skipBlanks(text, i+1)
			}
		}
	}
}

// rest appends raw without the members that used says were taken, and reports whether anything
// is left. Objects that lose all their members go with them; elements of arrays stay.
func (n *node) rest(dst []byte, raw string, used []bool) ([]byte, bool) {
	if used[n.slot] {
		return dst, false
	}
	if len(n.members) == 0 || raw[0] != '{' {
		return append(dst, raw...), true
	}
	start := len(dst)
	lost := false
	dst = append(dst, '{')
	r := reader{text: raw}
	for i := skipBlanks(raw, 1); raw[i] != '}'; {
		at := len(dst)
		if at > start+1 {
			dst = append(dst, ',')
		}
		end, escaped := r.str(i)
		child := n.member(raw[i:end], escaped)
		dst = append(append(dst, raw[i:end]...), ':')
		i = skipBlanks(raw, skipBlanks(raw, end)+1)
		end = r.value(i, nil, 0)
		if child == nil {
			dst = append(dst, raw[i:end]...)
		} else {
			var left bool
			if dst, left = child.rest(dst, raw[i:end], used); !left {
				dst, lost = dst[:at], true
			}
		}
		if i = skipBlanks(raw, end); raw[i] == ',' {
			i = skipBlanks(raw, i+1)
		}
	}
	if lost && len(dst) == start+1 {
		return dst[:start], false
	}
	return append(dst, '}'), true
}
