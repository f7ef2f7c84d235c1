package mapping

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/tidwall/gjson"
)

// treeOf makes a tree of paths and numbers it.
func treeOf(t testing.TB, paths ...string) *node {
	t.Helper()
	root := &node{}
	for _, path := range paths {
		e, err := parseExpression(path)
		if err != nil {
			t.Fatal(err)
		}
		root.at(e.terms[0].path)
	}
	root.number(0)
	return root
}

// slotsByLibrary fills slots as the reader should, by an established reader of JSON.
func slotsByLibrary(n *node, raw string, slots []string) {
	clear(slots[n.slot:n.end])
	slots[n.slot] = raw
	var items []string
	gjson.Parse(raw).ForEach(func(key, v gjson.Result) bool {
		items = append(items, v.Raw)
		for _, b := range n.members {
			var name string
			if raw[0] == '{' && json.Unmarshal([]byte(key.Raw), &name) == nil && name == b.name && !loneSurrogate(key.Raw) {
				slotsByLibrary(b.node, v.Raw, slots)
			}
		}
		return true
	})
	for _, b := range n.elements {
		i := b.index
		if i < 0 {
			i += len(items)
		}
		if raw[0] == '[' && i >= 0 && i < len(items) {
			slotsByLibrary(b.node, items[i], slots)
		}
	}
}

// loneSurrogate reports whether a raw string has an escape that is half a character, for which the
// library puts another character.
func loneSurrogate(raw string) bool {
	_, ok := unescape(raw)
	return !ok
}

// paths of the tree that the reader is compared with.
var comparedPaths = []string{
	"$.a", "$.a.b", "$.a[1]", "$.a[-1]", "$.a[-2].b", "$['']", `$['\u00e9']`, `$['a"b']`,
	"$[0]", "$[0].a", "$[-1]", "$[-1][-1]", "$.x_1", "$.x_2", "$.x_12.b[0]",
}

func compareReaders(t *testing.T, text string) {
	t.Helper()
	tree := treeOf(t, comparedPaths...)
	places := make([]place, tree.end)
	var r reader
	p := r.check(text, tree, places)
	valid := json.Valid([]byte(text)) && utf8.ValidString(text) && !tooDeep(text)
	if valid != (p.why == "") || strings.HasSuffix(p.why, "malformed") {
		t.Fatalf("%q is JSON: %t, the reader says %q", text, valid, p.why)
	}
	if !valid {
		return
	}
	raw := trimJSON(text)
	var slots []string
	for _, p := range places {
		slots = append(slots, p.of(raw))
	}
	want := make([]string, tree.end)
	slotsByLibrary(tree, raw, want)
	if !slices.Equal(slots, want) {
		t.Fatalf("%q: read\n%q, want\n%q", text, slots, want)
	}
	if raw[0] == '[' {
		var items []string
		gjson.Parse(raw).ForEach(func(_, v gjson.Result) bool { items = append(items, v.Raw); return true })
		if got := slices.Collect(elements(raw, 0, nil, nil)); !slices.Equal(got, items) {
			t.Fatalf("%q: elements %q, want %q", text, got, items)
		}
	}
	rest, left := tree.rest(nil, raw, make([]bool, tree.end))
	if !left || gjson.Get(string(rest), "@ugly").Raw != gjson.Get(raw, "@ugly").Raw {
		t.Fatalf("%q: rest %q", text, rest)
	}
}

var texts = []string{
	"", " ", "\ufeff1", "1", " 1 ", "01", "-", "-0", "-01", "+1", ".5", "1.", "1.5", "1.e5", "1e", "1e+", "1E-05", "1e5.", "0x1", "1_0", "NaN", "12a",
	"true", "tru", "truee", "false", "fals", "null", "nul", "nulll", "True", "t", "f", "n",
	`""`, `"`, `"a`, `"\"`, `"\u12"`, `"\u12g4"`, `"\uD83D\uDE00"`, `"\ud800"`, `"\x"`, `"\u0000"`, "\"\x00\"", "\"\x1f\"", "\"\x7f\"", "\"\t\"", "\"\xff\"", `"é"`, `"日本語日本語日本語"`,
	`"1234567\"`, `"12345678"`, `"123456789\n"`, "\"12345678\x01\"", "\"123456\xc3\xa9\xc3\"", "\"12345678901\xed\xa0\x80\"",
	`{}`, `{ }`, `{`, `}`, `{"a"}`, `{"a":}`, `{"a":1,}`, `{"a":1 "b":2}`, `{a:1}`, `{,}`, `{"a":1}}`, `{"a":1}{`, `{"a" : 1 , "b" : [ ] }`, `{"a":{"b":1},"a":{"c":2}}`, `{"a":{"b":1},"a":2}`,
	`{"\u0061":{"\u0062":[1,2]},"":0,"é":3,"a\"b":4,"x_1":5,"x_2":6,"x_12":{"b":[7]}}`, `{"a\ud800":1,"a":[{"b":1},{"b":2},{"b":3}]}`, "{\"\xc3\xa9\":1}", "{\"\xc3\":1}",
	`[]`, `[ ]`, `[`, `]`, `[1`, `[1,`, `[1,]`, `[,1]`, `[1 2]`, `[1]]`, `[1,[2,3,[4]],{"a":5}]`, "\t[\r\n1\t, 2 ]\n", "[1]\f", "[1]\v", "\u00a0[1]", `[[1],[2,[3]]]`, `[{"a":1},[{"a":2}]]`,
	`{"a":[1,{"b":"x"},"y\\"]}`, "[\x00]", "1\x00", `[1e999999999999]`, `{"a":tru}`, `[nul]`,
}

// TestReader compares the reader with the ones of the standard library and of gjson.
func TestReader(t *testing.T) {
	for _, text := range texts {
		compareReaders(t, text)
	}
	for _, depth := range []int{maxDepth - 1, maxDepth, maxDepth + 1} {
		compareReaders(t, strings.Repeat("[", depth)+strings.Repeat("]", depth))
		compareReaders(t, strings.Repeat(`{"a":[`, depth/2)+strings.Repeat("]}", depth/2))
		compareReaders(t, strings.Repeat("[", depth))
		compareReaders(t, `{"x":"`+strings.Repeat("[", depth)+`"}`)
	}
	for i := range 20 { // a special byte at every place of a word
		for _, c := range []string{`"`, `\`, `\"`, "\x00", "\x1f", " ", "\x7f", "\x80", "é", "!", "#", "[", "]"} {
			compareReaders(t, `{"a":"`+strings.Repeat("x", i)+c+`yyyyyyyyy"}`)
		}
	}
}

// TestManyNames finds each of many members, and none that nobody named.
func TestManyNames(t *testing.T) {
	var paths []string
	for i := range 500 {
		paths = append(paths, fmt.Sprintf("$.v%d", i))
	}
	tree := treeOf(t, paths...)
	slots := make([]place, tree.end)
	var r reader
	for i := range 500 {
		clear(slots)
		text := fmt.Sprintf(`{"w%d":1,"v":2,"v%d":3,"v%dx":4}`, i, i, i)
		r.check(text, tree, slots)
		for j, p := range slots[1:] {
			got := p.of(text)
			if want := map[bool]string{true: "3"}[i == j]; got != want {
				t.Fatalf("v%d: slot %d holds %q, want %q", i, j, got, want)
			}
		}
	}
}

func FuzzReader(f *testing.F) {
	for _, text := range texts {
		f.Add(text)
	}
	f.Fuzz(compareReaders)
}

// FuzzUsual compares the short way of usual values into usual columns, and to times, with the long one.
func FuzzUsual(f *testing.F) {
	for _, raw := range []string{
		"1", "-1.50", "0", "-0.0", "123456789012345", "1234567890123456", "1e5", "1.7976931348623157e999", `"21.5"`, "true", "null", "{}", "[1]",
		`""`, `"text"`, `"a\u0000"`, `"a\ud800"`, `"a\"b"`, `"é"`, `"01234567-89ab-cdef-0123-456789ABCDEF"`, `"{0123456789abcdef0123456789abcdef}"`,
		`"0123456789abcdef0123456789abcdeg"`, `"01234567-89ab-cdef-0123+456789abcdef"`, `" 0123456789abcdef0123456789abcdef "`, `"0123456789abcdef0123456789abcde"`,
		`"2026-01-02T03:04:05.678Z"`, `"2026-01-02t03:04:05+01:00"`, `"2026-01-02 03:04:05"`, `"2026-01-02T03:04:05+0100"`, `"0001-01-01T00:00:00+23:59"`, `"9999-12-31T23:59:60Z"`, "1767323045",
	} {
		f.Add(raw)
	}
	types := []string{"float8", "text", "uuid", "float4", "int8", "numeric", "jsonb", "text[]", "varchar(3)"}
	f.Fuzz(func(t *testing.T, raw string) {
		if checkJSON(raw).why != "" || raw != trimJSON(raw) {
			return
		}
		for _, typ := range types {
			columns, errs := parseColumns("a:"+typ+" = $", formatJSON)
			if errs != nil {
				t.Fatal(errs)
			}
			c := &columns[0]
			c.from.terms[0].node = &node{}
			s := scratch{slots: []place{{0, uint32(len(raw))}}, payload: raw, used: make([]bool, 1), document: true}
			route := &Route{columns: columns}
			route.shorten()
			got, ok := s.usual(route.shortcuts[0], nil)
			if want, p := c.typ.appendField(nil, rawValue(raw), &clock{}); ok && (p.why != "" || string(got) != string(want)) {
				t.Fatalf("%s as %s: %x, and the long way %x %s", raw, typ, got, want, p.why)
			}
			for form, format := range []string{formAuto: "auto", formRFC3339: "rfc3339", formUnix: "unix", formLayout: time.RFC3339} {
				s.route = &Route{time: c.from, clock: clock{format: format, form: clockForm(form)}}
				s.route.shorten()
				got, ok := s.usualTime()
				if want, why := s.route.clock.parse(rawValue(raw)); ok && (why != "" || got != want) {
					t.Fatalf("%s as %s: %d, and the long way %d %s", raw, format, got, want, why)
				}
			}
		}
	})
}
