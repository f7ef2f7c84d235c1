package mapping

import (
	"fmt"
	"strings"
)

// column is one configured column of a route.
type column struct {
	name string
	typ  columnType
	from expression
}

// maxIdentifier is the longest name PostgreSQL keeps, in bytes.
const maxIdentifier = 63

// reserved are the names a configured column cannot have: those of the bridge and of PostgreSQL.
var reserved = map[string]string{
	"device_id": "the bridge", "time": "the bridge", "message_id": "the bridge", "received_at": "the bridge",
	"topic": "the bridge", "payload": "the bridge", "payload_bytes": "the bridge",
	"tableoid": "PostgreSQL", "xmin": "PostgreSQL", "cmin": "PostgreSQL", "xmax": "PostgreSQL",
	"cmax": "PostgreSQL", "ctid": "PostgreSQL",
}

// parseColumns reads COLUMNS: name[:type] = expression, separated by commas or line ends. A type
// left out is the one the expression has by nature. Behind a mistake it goes on with the next
// column, to find them all.
func parseColumns(text string, f format) (columns []column, errs []*itemError) {
	p := &parser{text: text}
	for p.blanks(); p.pos < len(text); p.blanks() {
		start := p.pos
		c, err := p.column(f)
		for _, other := range columns {
			if err == nil && other.name == c.name {
				err = p.fail(start, "column %s stands twice", c.name)
			}
		}
		if err == nil {
			columns = append(columns, c)
			err = p.separator()
		}
		if err != nil {
			p.skipItem(start)
			errs = append(errs, &itemError{strings.TrimRight(text[start:p.pos], ", \t\r\n"), err})
		}
	}
	return columns, errs
}

// itemError is what is wrong with one item of COLUMNS.
type itemError struct {
	item string // as the operator wrote it
	err  error
}

func (e *itemError) Error() string { return e.err.Error() }
func (e *itemError) Unwrap() error { return e.err }

// skipItem goes from the start of an item to the next one.
func (p *parser) skipItem(start int) {
	open, quote := 0, byte(0)
	for p.pos = start; p.pos < len(p.text); p.pos++ {
		switch c := p.text[p.pos]; {
		case quote != 0:
			if c == quote {
				quote = 0
			}
		case c == '\'' || c == '"':
			quote = c
		case c == '(' || c == '[' || c == '{':
			open++
		case c == ')' || c == ']' || c == '}':
			open--
		case c == '\n' || c == ',' && open <= 0:
			p.pos++
			return
		}
	}
}

func (p *parser) column(f format) (c column, err error) {
	start := p.pos
	c.name = p.word()
	switch owner := reserved[c.name]; {
	case c.name == "":
		return c, p.expected("a column, name = expression or name:type = expression")
	case !isName(c.name) || len(c.name) > maxIdentifier:
		return c, p.fail(start, "column %q: expected lower-case letters, digits and _, not beginning with a digit, at most %d bytes", cut(c.name, 80), maxIdentifier)
	case owner != "":
		return c, p.fail(start, "column %s belongs to %s; expected another name", c.name, owner)
	}
	p.blanks()
	typed := p.accept(":")
	if typed {
		p.blanks()
		start = p.pos
		if c.typ, err = parseType(p.typeText()); err != nil {
			return c, p.fail(start, "column %s: %s", c.name, err)
		}
	}
	if p.blanks(); !p.accept("=") {
		if at := p.pos; !typed {
			if t, err := parseType(p.typeText()); err == nil {
				return c, p.fail(at, "column %[1]s: expected a colon before the type: %[1]s:%[2]s = …", c.name, t.name)
			}
			p.pos = at
		}
		return c, p.expected("= and an expression for column " + c.name)
	}
	p.blanks()
	start = p.pos
	if c.from, err = p.expression(); err != nil {
		return c, err
	}
	if !typed {
		var ok bool
		if c.typ, ok = c.from.natural(f); !ok {
			return c, p.fail(start, "column %s: the alternatives of %s differ in type; expected %s:type = …", c.name, cut(c.from.text, 80), c.name)
		}
	}
	return c, nil
}

// typeText takes what stands before the equals sign or the end of the item.
func (p *parser) typeText() string {
	start, open := p.pos, 0
	for ; p.pos < len(p.text); p.pos++ {
		switch c := p.text[p.pos]; {
		case c == '(':
			open++
		case c == ')':
			open--
		case c == '=' || c == '\n' || c == ',' && open <= 0:
			return strings.TrimSpace(p.text[start:p.pos])
		}
	}
	return strings.TrimSpace(p.text[start:])
}

// natural is the type of a column that names none. It is not ok if the alternatives disagree.
func (e *expression) natural(f format) (t columnType, ok bool) {
	for i := range e.terms {
		base := e.terms[i].natural(f)
		if i > 0 && base != t.base {
			return t, false
		}
		t = plain(base)
	}
	return t, true
}

func (t *term) natural(f format) baseType {
	switch t.source {
	case sourceDocument, sourceElement:
		return typeJSONB
	case sourceCorrelation:
		return typeBytea
	case sourceQoS:
		return typeInt2
	case sourceRetain:
		return typeBool
	case sourceReceivedAt:
		return typeTimestamptz
	case sourcePayload:
		switch f {
		case formatText:
			return typeText
		case formatRaw:
			return typeBytea
		}
		return typeJSONB
	case sourceLiteral:
		return t.value.natural()
	}
	return typeText
}

// natural is the type of a literal.
func (v value) natural() baseType {
	switch v.kind {
	case kindBool:
		return typeBool
	case kindNumber:
		if strings.ContainsAny(v.str, ".eE") {
			return typeNumeric
		}
		if _, p := v.integer(-1<<31, 1<<31-1); p.why == "" {
			return typeInt4
		}
		if _, p := v.integer(-1<<63, 1<<63-1); p.why == "" {
			return typeInt8
		}
		return typeNumeric
	}
	return typeText
}

// checkConstants says what of an expression can never fit the column: a literal, or a source whose
// kind is known beforehand.
func (c *column) checkConstants(clock *clock) error {
	for i := range c.from.terms {
		t := &c.from.terms[i]
		v := t.value
		switch t.source {
		case sourceLiteral:
		case sourceQoS:
			v = value{kind: kindNumber, str: "1"}
		case sourceRetain:
			v = value{kind: kindBool, str: "true"}
		case sourceReceivedAt:
			v = value{kind: kindInstant, micros: 1}
		default:
			continue
		}
		if _, p := c.typ.appendField(nil, v, clock); p.why != "" {
			return fmt.Errorf("column %s: %s cannot become %s: %s %s", c.name, cut(c.from.text, 80), c.typ.name, v.show(), p.why)
		}
	}
	return nil
}
