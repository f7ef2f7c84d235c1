package mapping

import (
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"
)

// describe writes an expression as the parser understood it.
func describe(e expression) string {
	var terms []string
	for _, t := range e.terms {
		s := fmt.Sprintf("%d", t.source)
		switch t.source {
		case sourceLiteral:
			s = fmt.Sprintf("literal %d %s", t.value.kind, t.value.str)
		case sourceCapture:
			s = "capture " + t.name
		case sourceUser:
			s = "user " + t.name
		case sourceLevel:
			s = fmt.Sprintf("level %d", t.index)
		case sourceDocument, sourceElement:
			s = map[source]string{sourceDocument: "$", sourceElement: "@"}[t.source]
			for _, step := range t.path {
				if step.member {
					s += fmt.Sprintf(" %q", step.name)
				} else {
					s += fmt.Sprintf(" %d", step.index)
				}
			}
		default:
			for word, source := range words {
				if source == t.source {
					s = word
				}
			}
		}
		terms = append(terms, s)
	}
	return strings.Join(terms, " | ")
}

func TestParseExpression(t *testing.T) {
	for text, want := range map[string]string{
		"{device_id}":             "capture device_id",
		"topic":                   "topic",
		"topic[1]":                "level 1",
		"topic[-1]":               "level -1",
		"$":                       "$",
		"@":                       "@",
		"$.a.b[0]":                `$ "a" "b" 0`,
		"$['a b'][-2]":            `$ "a b" -2`,
		`$["it's"]['it\'s']`:      `$ "it's" "it's"`,
		`$['"']["\""]`:            `$ "\"" "\""`,
		`$['\u00e9\ud83d\ude00']`: `$ "é😀"`,
		`$['\\\/\n']`:             `$ "\\/\n"`,
		"$[ 'a' ][ 1 ]":           `$ "a" 1`,
		"$.größe":                 `$ "größe"`,
		"@.x":                     `@ "x"`,
		"user.site-id":            "user site-id",
		"user['my site']":         "user my site",
		"content_type":            "content_type",
		"correlation_data":        "correlation_data",
		"qos":                     "qos",
		"retain":                  "retain",
		"received_at":             "received_at",
		"payload":                 "payload",
		"'it''s'":                 "literal 4 it's",
		"''":                      "literal 4 ",
		"42":                      "literal 3 42",
		"-1.5":                    "literal 3 -1.5",
		"1e-3":                    "literal 3 1e-3",
		"0.5E+2":                  "literal 3 0.5E+2",
		"true":                    "literal 2 true",
		" $.a??$.b ?? 'c' ":       `$ "a" | $ "b" | literal 4 c`,
		"$.a\n ?? $.b":            `$ "a" | $ "b"`,
	} {
		e, err := parseExpression(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
		} else if got := describe(e); got != want {
			t.Errorf("%s is %s, want %s", text, got, want)
		}
	}
}

func TestParseExpressionMistakes(t *testing.T) {
	for text, want := range map[string]string{
		"":              "character 1: expected an expression",
		"temperature":   `for the member "temperature" of a JSON payload write $.temperature`,
		"$.":            "character 3: expected a member name",
		"$.a-b":         "character 4: a name with a hyphen is written ['a-…']",
		"$.a.*":         "character 5: expected a member name",
		"$[*]":          "only single values can be selected",
		"$[?@.a]":       "only single values can be selected",
		"$..a":          "character 3: expected a member name",
		"$[1":           "character 4: expected ], but the text ends",
		"$[01]":         "character 3: 01 is no index",
		"$[-0]":         "-0 is no index",
		"$[9999999999]": "is no index",
		"$[-]":          "expected a number",
		"$['a":          "character 3: this quote is never closed",
		`$['\x']`:       `character 4: \x is no escape`,
		`$['\ud800']`:   "unpaired surrogate",
		`$['\"']`:       "is no escape",
		"$['a\tb']":     "control character",
		"{a":            "expected }",
		"{A}":           "expected the name of a topic capture",
		"topic[0]":      "count from 1",
		"topic[a]":      "expected a number",
		"topic[1":       "expected ]",
		"user":          "expected the name of a user property",
		"user.":         "expected the name of a user property",
		"user[1]":       "expected a name in single quotes",
		"user['a'":      "expected ]",
		"user['a":       "never closed",
		"'a":            "character 1: this quote is never closed",
		"1.":            "expected a digit",
		"-":             "expected a digit",
		"1e":            "expected a digit",
		"007":           "does not begin with 0",
		"12ab":          "expected the end of the number",
		"$.a ?? ":       "expected an expression",
		"$.a $.b":       `character 5: expected ?? or the end of the expression, found '$'`,
		"ä ??":          "write $.ä",
		"$.ä)":          `character 4: expected ?? or the end of the expression, found ')'`,
	} {
		if _, err := parseExpression(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

func TestParseExpressions(t *testing.T) {
	list, err := parseExpressions(" $.a ?? 'x,y', user['b, c']\n @.id,\n")
	if err != nil || len(list) != 3 || list[0].text != "$.a ?? 'x,y'" || list[1].text != "user['b, c']" || list[2].text != "@.id" {
		t.Fatalf("%+v %v", list, err)
	}
	for _, text := range []string{"", " ", ",", "$.a,,$.b", "$.a $.b"} {
		if _, err := parseExpressions(text); err == nil {
			t.Errorf("%q was taken", text)
		}
	}
}

func FuzzParseExpression(f *testing.F) {
	for _, seed := range []string{"{a}", "topic[-1]", "$.a['b c'][0]", `@["\u00e9"]`, "user.x ?? 'it''s'", "-1.5e3", "true ?? false", "$['"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		e, err := parseExpression(text)
		if err != nil {
			if utf8.ValidString(text) && !utf8.ValidString(err.Error()) {
				t.Fatalf("%q: the message is not UTF-8: %q", text, err)
			}
			return
		}
		again, err := parseExpression(e.text)
		if err != nil || describe(again) != describe(e) {
			t.Fatalf("%q was read as %q, and that as %q: %v", text, describe(e), describe(again), err)
		}
	})
}
