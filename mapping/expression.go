package mapping

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// expression says where a value comes from: the first of its terms that is present and not null.
type expression struct {
	text  string // as the operator wrote it
	terms []term
}

// term is one alternative of an expression.
type term struct {
	source source
	name   string // of the capture or the user property
	index  int    // of the topic level: from 1, or from -1 at the end
	filled bool   // an empty topic level counts as absent
	path   []step // of a JSONPath
	node   *node  // where the path's value is found, once the route is compiled
	value  value  // of a literal
}

type source uint8

const (
	sourceLiteral source = iota
	sourceCapture
	sourceTopic
	sourceLevel
	sourceDocument // $…
	sourceElement  // @…
	sourceUser
	sourceContentType
	sourceCorrelation
	sourceQoS
	sourceRetain
	sourceReceivedAt
	sourcePayload
)

// step is one segment of a singular JSONPath query: a member name or an array index (RFC 9535,
// section 2.3.5.1).
type step struct {
	name   string
	index  int
	member bool
}

// words are the sources that are written as plain words.
var words = map[string]source{
	"topic":            sourceTopic,
	"user":             sourceUser,
	"content_type":     sourceContentType,
	"correlation_data": sourceCorrelation,
	"qos":              sourceQoS,
	"retain":           sourceRetain,
	"received_at":      sourceReceivedAt,
	"payload":          sourcePayload,
	"true":             sourceLiteral,
	"false":            sourceLiteral,
}

const anExpression = "an expression: {capture}, topic, topic[1], $.member, @.member, user.name, content_type, " +
	"correlation_data, qos, retain, received_at, payload, 'text', a number, true or false"

// parser reads expressions, expression lists and COLUMNS.
type parser struct {
	text string
	pos  int
}

// fail names a place in the operator's text that cannot be read, by its character, counted from 1.
func (p *parser) fail(pos int, format string, args ...any) error {
	return fmt.Errorf("character %d: %s", utf8.RuneCountInString(p.text[:pos])+1, fmt.Sprintf(format, args...))
}

// expected tells what should have stood at the present place, and what does.
func (p *parser) expected(what string) error {
	if p.pos >= len(p.text) {
		return p.fail(p.pos, "expected %s, but the text ends", what)
	}
	found, _ := utf8.DecodeRuneInString(p.text[p.pos:])
	return p.fail(p.pos, "expected %s, found %q", what, found)
}

// peek is the next byte, 0 at the end.
func (p *parser) peek() byte {
	if p.pos < len(p.text) {
		return p.text[p.pos]
	}
	return 0
}

// accept steps over prefix if it comes next.
func (p *parser) accept(prefix string) bool {
	if !strings.HasPrefix(p.text[p.pos:], prefix) {
		return false
	}
	p.pos += len(prefix)
	return true
}

// blanks steps over white space and reports whether a line ended there.
func (p *parser) blanks() (newline bool) {
	for ; p.pos < len(p.text); p.pos++ {
		switch p.text[p.pos] {
		case '\n', '\r':
			newline = true
		case ' ', '\t':
		default:
			return newline
		}
	}
	return newline
}

// word takes the letters, digits, underscores and bytes beyond ASCII that come next.
func (p *parser) word() string {
	start := p.pos
	for ; p.pos < len(p.text); p.pos++ {
		c := p.text[p.pos]
		if !isLetter(c) && !isDigit(c) {
			break
		}
	}
	return p.text[start:p.pos]
}

func isLetter(c byte) bool { return c|0x20 >= 'a' && c|0x20 <= 'z' || c == '_' || c >= utf8.RuneSelf }
func isDigit(c byte) bool  { return c >= '0' && c <= '9' }

// parseExpression reads a text that is one expression and nothing else.
func parseExpression(text string) (expression, error) {
	p := &parser{text: text}
	p.blanks()
	e, err := p.expression()
	if err != nil {
		return expression{}, err
	}
	if p.blanks(); p.pos < len(text) {
		return expression{}, p.expected("?? or the end of the expression")
	}
	return e, nil
}

// parseExpressions reads expressions separated by commas or line ends.
func parseExpressions(text string) ([]expression, error) {
	var list []expression
	p := &parser{text: text}
	for p.blanks(); p.pos < len(text); p.blanks() {
		e, err := p.expression()
		if err != nil {
			return nil, err
		}
		list = append(list, e)
		if err := p.separator(); err != nil {
			return nil, err
		}
	}
	if list == nil {
		return nil, p.expected(anExpression)
	}
	return list, nil
}

// separator steps over what stands between two items of a list.
func (p *parser) separator() error {
	newline := p.blanks()
	if p.accept(",") || newline || p.pos == len(p.text) {
		return nil
	}
	return p.expected("?? or a comma")
}

// expression reads terms joined by ??.
func (p *parser) expression() (expression, error) {
	var e expression
	start := p.pos
	for {
		t, err := p.term()
		if err != nil {
			return expression{}, err
		}
		e.terms = append(e.terms, t)
		end := p.pos
		p.blanks()
		if !p.accept("??") {
			p.pos = end
			e.text = p.text[start:end]
			return e, nil
		}
		p.blanks()
	}
}

func (p *parser) term() (term, error) {
	start := p.pos
	switch c := p.peek(); {
	case c == '{':
		return p.capture()
	case c == '\'':
		text, err := p.literal()
		return term{source: sourceLiteral, value: value{kind: kindText, str: text}}, err
	case c == '-' || isDigit(c):
		return p.number()
	case p.accept("$"):
		path, err := p.path()
		return term{source: sourceDocument, path: path}, err
	case p.accept("@"):
		path, err := p.path()
		return term{source: sourceElement, path: path}, err
	case !isLetter(c):
		return term{}, p.expected(anExpression)
	}
	word := p.word()
	source, known := words[word]
	switch {
	case !known:
		return term{}, p.fail(start, "expected %s; for the member %q of a JSON payload write $.%s", anExpression, word, word)
	case word == "true" || word == "false":
		return term{source: source, value: value{kind: kindBool, str: word}}, nil
	case source == sourceTopic && p.peek() == '[':
		return p.level()
	case source == sourceUser:
		return p.userProperty()
	}
	return term{source: source}, nil
}

func (p *parser) capture() (term, error) {
	start := p.pos
	p.pos++
	name := p.word()
	if !isName(name) {
		p.pos = start + 1
		return term{}, p.expected("the name of a topic capture")
	}
	if !p.accept("}") {
		return term{}, p.expected("}")
	}
	return term{source: sourceCapture, name: name}, nil
}

func (p *parser) level() (term, error) {
	p.pos++
	index, err := p.index()
	if err != nil {
		return term{}, err
	}
	if index == 0 {
		return term{}, p.fail(p.pos-1, "topic levels count from 1, or back from -1, the last")
	}
	if !p.accept("]") {
		return term{}, p.expected("]")
	}
	return term{source: sourceLevel, index: index}, nil
}

func (p *parser) userProperty() (term, error) {
	const what = "the name of a user property, as in user.site or user['my site']"
	switch {
	case p.accept("."):
		start := p.pos
		for c := p.peek(); isLetter(c) || isDigit(c) || c == '-'; c = p.peek() {
			p.pos++
		}
		if p.pos == start {
			return term{}, p.expected(what)
		}
		return term{source: sourceUser, name: p.text[start:p.pos]}, nil
	case p.accept("["):
		if p.peek() != '\'' {
			return term{}, p.expected("a name in single quotes, as in user['my site']")
		}
		name, err := p.literal()
		if err != nil {
			return term{}, err
		}
		if !p.accept("]") {
			return term{}, p.expected("]")
		}
		return term{source: sourceUser, name: name}, nil
	}
	return term{}, p.expected(what)
}

// literal reads a text in single quotes, in which two of them stand for one, as in SQL.
func (p *parser) literal() (string, error) {
	start := p.pos
	var b strings.Builder
	for {
		p.pos++
		end := strings.IndexByte(p.text[p.pos:], '\'')
		if end < 0 {
			return "", p.fail(start, "this quote is never closed")
		}
		b.WriteString(p.text[p.pos : p.pos+end])
		p.pos += end + 1
		if p.peek() != '\'' {
			return b.String(), nil
		}
		b.WriteByte('\'')
	}
}

// number reads a number as JSON writes it.
func (p *parser) number() (term, error) {
	start := p.pos
	digits := func() error {
		if !isDigit(p.peek()) {
			return p.expected("a digit")
		}
		for isDigit(p.peek()) {
			p.pos++
		}
		return nil
	}
	p.accept("-")
	if err := digits(); err != nil {
		return term{}, err
	}
	if p.accept(".") {
		if err := digits(); err != nil {
			return term{}, err
		}
	}
	if p.peek()|0x20 == 'e' {
		p.pos++
		if !p.accept("+") {
			p.accept("-")
		}
		if err := digits(); err != nil {
			return term{}, err
		}
	}
	if isLetter(p.peek()) {
		return term{}, p.expected("the end of the number")
	}
	literal := p.text[start:p.pos]
	whole := strings.TrimPrefix(literal, "-")
	if len(whole) > 1 && whole[0] == '0' && isDigit(whole[1]) {
		return term{}, p.fail(start, "a number does not begin with 0")
	}
	return term{source: sourceLiteral, value: value{kind: kindNumber, str: literal}}, nil
}

// path reads the segments behind $ or @: .name, ['name'], ["name"] and [index].
func (p *parser) path() ([]step, error) {
	var path []step
	for {
		switch {
		case p.accept("."):
			start := p.pos
			name := p.word()
			switch {
			case name == "" || isDigit(name[0]):
				p.pos = start
				return nil, p.expected("a member name; other names are written ['name']")
			case p.peek() == '-':
				return nil, p.fail(p.pos, "a name with a hyphen is written ['%s-…']", name)
			}
			path = append(path, step{name: name, member: true})
		case p.accept("["):
			p.blanks()
			s, err := p.bracket()
			if err != nil {
				return nil, err
			}
			p.blanks()
			if !p.accept("]") {
				return nil, p.expected("]")
			}
			path = append(path, s)
		default:
			return path, nil
		}
	}
}

func (p *parser) bracket() (step, error) {
	switch c := p.peek(); {
	case c == '\'' || c == '"':
		name, err := p.quotedName(c)
		return step{name: name, member: true}, err
	case c == '-' || isDigit(c):
		index, err := p.index()
		return step{index: index}, err
	}
	return step{}, p.expected("a quoted member name or an array index; only single values can be selected")
}

// index reads a whole number without leading zeros (RFC 9535, section 2.3.3.1).
func (p *parser) index() (int, error) {
	start := p.pos
	p.accept("-")
	if !isDigit(p.peek()) {
		return 0, p.expected("a number")
	}
	for isDigit(p.peek()) {
		p.pos++
	}
	text := p.text[start:p.pos]
	n, err := strconv.ParseInt(text, 10, 32)
	if err != nil || strconv.FormatInt(n, 10) != text {
		return 0, p.fail(start, "%s is no index", cut(text, 40))
	}
	return int(n), nil
}

// quotedName reads a member name in quotes with the escapes of RFC 9535, section 2.3.1.1, which are
// those of JSON and the escaped quote.
func (p *parser) quotedName(quote byte) (string, error) {
	start := p.pos
	p.pos++
	var escaped strings.Builder // the name as a JSON string
	escaped.WriteByte('"')
	for {
		switch c := p.peek(); {
		case p.pos >= len(p.text):
			return "", p.fail(start, "this quote is never closed")
		case c == quote:
			p.pos++
			escaped.WriteByte('"')
			name, ok := unescape(escaped.String())
			if !ok {
				return "", p.fail(start, "the name holds an unpaired surrogate")
			}
			return name, nil
		case c < ' ':
			return "", p.fail(p.pos, "a control character in a name is written as an escape")
		case c == '"':
			escaped.WriteString(`\"`)
			p.pos++
		case c == '\\':
			n := 2
			if p.pos++; p.peek() == 'u' {
				n = 6
			}
			at := p.pos - 1
			escape := p.text[at:min(at+n, len(p.text))]
			switch {
			case p.peek() == '\'' && quote == '\'':
				escaped.WriteByte('\'')
			case p.peek() == '"' && quote == '\'' || !isEscape(escape):
				return "", p.fail(at, "%s is no escape", strings.ToValidUTF8(escape, "?"))
			default:
				escaped.WriteString(escape)
			}
			p.pos = at + len(escape)
		default:
			escaped.WriteByte(c)
			p.pos++
		}
	}
}
