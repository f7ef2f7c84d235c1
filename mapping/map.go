package mapping

import (
	"crypto/sha256"
	"fmt"
	"math"
	"strings"
	"sync"
	"unsafe"
)

// maxDevice is the greatest length of a device id in bytes: what fits an index entry with room to
// spare.
const maxDevice = 1024

// Limits of what one message may give through EACH. Every row repeats topic and device, so that
// without them a small message could fill the memory.
const (
	maxElements   = 65536
	maxEachFields = 64 << 20 // bytes of all rows' fields, unless the payload itself is longer
)

// scratch is what mapping one message needs for a moment. It is reused.
type scratch struct {
	levels  []string // of the topic
	found   []match
	topic   problem // what is wrong with it
	buffer  []byte
	ends    []int   // of the rows' fields
	slots   []place // where the document has what its nodes ask for and, behind, an element what its ask for
	reader  reader
	checked bool    // payload was read as JSON
	json    problem // what is wrong with it

	// What follows belongs to the route at work.
	message  *Message
	arena    *Arena // where rows and their fields go
	route    *Route
	filter   *filter
	payload  string            // absent if empty
	hash     [sha256.Size]byte // of the content, if ids are made of it
	used     []bool            // which slots some expression looked at
	document bool              // the document's slots are filled
	element  bool              // the element's are
}

var scratches = sync.Pool{New: func() any { return new(scratch) }}

// Map says what becomes of m: it appends one outcome for every route that wants its topic, in the
// order of the configuration, and nothing if none does. It is safe for concurrent use and keeps
// nothing of m: not even a string, for the memory behind it serves other messages later.
func (r *Routes) Map(m *Message, out []Outcome) []Outcome { return r.mapCopy(m, nil, &nowhere, out) }

// MapCopy is Map for a copy of a message that the broker sent for the subscriptions with the
// identifiers given, see [Subscription]. Where filters overlap in part, all copies of a message but one
// are passed over, with SkipOverlap for every route that wants the topic. Retained messages are not: they
// come when a subscription is new, and the other one's copy may have come long before.
//
// The outcomes and their rows are in the arena given, which may be nil, but for rejections and what is too
// large for it.
func (r *Routes) MapCopy(m *Message, subscriptionIDs []uint32, arena *Arena) []Outcome {
	into := arena.slabs()
	return into.outcomes.keep(r.mapCopy(m, subscriptionIDs, into, into.outcomes.open(1)))
}

func (r *Routes) mapCopy(m *Message, subscriptionIDs []uint32, arena *Arena, out []Outcome) []Outcome {
	s := scratches.Get().(*scratch)
	s.levels = splitLevels(m.Topic, s.levels[:0])
	s.found = r.trie.find(s.levels, s.found[:0])
	s.message, s.arena = m, arena
	s.checked = false
	if cap(s.slots) < r.slots {
		s.slots, s.used = make([]place, r.slots), make([]bool, r.slots)
	}
	s.slots, s.used = s.slots[:r.slots], s.used[:r.slots]
	if !m.Retain && r.copies.repeats(s.levels, subscriptionIDs) {
		for _, found := range s.found {
			out = append(out, Outcome{Route: r.routes[found.route], Skip: SkipOverlap})
		}
		s.found = s.found[:0]
	}
	if len(s.found) > 0 {
		if s.topic = checkText(m.Topic); s.topic.why != "" {
			s.topic.why = "the topic " + s.topic.why
		}
	}
	for _, found := range s.found {
		s.begin(r.routes[found.route], found.filter)
		out = append(out, s.outcome())
	}
	s.end()
	scratches.Put(s)
	return out
}

// RefuseCopy is MapCopy for a message that no route may have: every route that wants its topic gets the
// same rejection. The payload is not looked at.
func (r *Routes) RefuseCopy(m *Message, subscriptionIDs []uint32, rejection *Rejection, out []Outcome) []Outcome {
	levels := splitLevels(m.Topic, nil)
	outcome := Outcome{Rejection: rejection}
	if !m.Retain && r.copies.repeats(levels, subscriptionIDs) {
		outcome = Outcome{Skip: SkipOverlap}
	}
	for _, found := range r.trie.find(levels, nil) {
		outcome.Route = r.routes[found.route]
		out = append(out, outcome)
	}
	return out
}

// splitLevels appends the levels of a topic.
func splitLevels(topic string, levels []string) []string {
	for {
		i := strings.IndexByte(topic, '/')
		if i < 0 {
			return append(levels, topic)
		}
		levels = append(levels, topic[:i])
		topic = topic[i+1:]
	}
}

func (s *scratch) begin(route *Route, filter int) {
	s.route = route
	s.filter = &route.filters[filter]
	s.document, s.element = false, false
	// The payload is read as a string and not changed while it is: rows hold copies.
	s.payload = unsafe.String(unsafe.SliceData(s.message.Payload), len(s.message.Payload))
	if route.payload == payloadRest { // nobody else asks
		clear(s.used)
	}
}

// end lets go of the message, so that a resting scratch keeps no payload alive.
func (s *scratch) end() {
	clear(s.levels)
	clear(s.slots)
	s.reader.text = ""
	s.message, s.arena, s.route, s.filter, s.payload = nil, nil, nil, nil, ""
	if cap(s.buffer) > 1<<16 || cap(s.levels) > 1<<10 || cap(s.ends) > 1<<10 {
		s.buffer, s.levels, s.ends = nil, nil, nil
	}
}

func (s *scratch) outcome() Outcome {
	o := Outcome{Route: s.route}
	switch {
	case s.payload == "" && !s.route.storeEmpty:
		o.Skip = SkipEmpty
		return o
	case s.message.Retain && !s.route.storeRetained:
		o.Skip = SkipRetained
		return o
	}
	rows, p := s.rows()
	switch {
	case p.why != "":
		o.Rejection = p.rejection()
	case len(rows) == 0:
		o.Skip = SkipNoRows
	default:
		o.Rows = rows
	}
	return o
}

// rows maps the message to the rows of the route: all or none.
func (s *scratch) rows() ([]Row, problem) {
	if s.topic.why != "" {
		return nil, s.topic
	}
	if p := s.open(); p.why != "" {
		return nil, p
	}
	if s.route.key == keyAuto && s.route.timed {
		s.hash = s.contentHash(s.route.Name, s.message)
	}
	if !s.route.Each || s.payload == "" {
		rows := append(s.arena.rows.open(1), Row{})
		fields, p := s.row(&rows[0], 0, s.arena.bytes.open(s.room(len(s.payload))))
		if p.why != "" {
			return nil, p
		}
		rows[0].hold(s.arena.bytes.keep(fields))
		return s.arena.rows.keep(rows), problem{}
	}
	return s.eachRow()
}

// open reads the payload as FORMAT says.
func (s *scratch) open() problem {
	if s.payload == "" {
		return problem{}
	}
	switch s.route.format {
	case formatText:
		p := checkText(s.payload)
		if p.why != "" {
			p.why = "the payload " + p.why
		}
		return p
	case formatJSON:
		if !s.checked {
			s.checked = true
			s.json = s.reader.check(s.payload, s.route.document, s.slots)
		}
		switch {
		case s.json.why != "" && s.route.opaque:
			return problem{}
		case s.json.why != "":
			return s.json
		}
		s.payload = trimJSON(s.payload)
		s.document = true
	}
	return problem{}
}

// room estimates the bytes of a row's fields.
func (s *scratch) room(payload int) int {
	n := 96 + len(s.message.Topic)*2 + 16*len(s.route.shortcuts)
	if s.route.payload != payloadDrop {
		n += payload
	}
	return n
}

func (s *scratch) eachRow() ([]Row, problem) {
	raw := s.slots[s.route.each.slot].of(s.payload)
	s.used[s.route.each.slot] = true
	if raw == "" || raw[0] != '[' {
		return nil, problem{ReasonInvalidEach, fmt.Sprintf("EACH = %s selects no array: %s", cut(s.route.eachText, 80), rawValue(raw).show())}
	}
	var (
		rows   = s.arena.rows.open(1)
		ends   = s.ends[:0]
		fields = s.arena.bytes.open(s.room(len(raw)))
		bad    problem
	)
	first, last := s.route.item.slot, s.route.item.end
	for range elements(s.payload, int(s.slots[s.route.each.slot].begin), &s.route.item, s.slots) {
		if len(rows) == maxElements {
			bad = problem{ReasonInvalidEach, fmt.Sprintf("EACH = %s selects more than %d elements", cut(s.route.eachText, 80), maxElements)}
			break
		}
		clear(s.used[first:last])
		s.element = true
		rows = append(rows, Row{})
		if fields, bad = s.row(&rows[len(ends)], len(ends), fields); bad.why != "" {
			bad.why = fmt.Sprintf("element %d: %s", len(ends), bad.why)
			break
		}
		ends = append(ends, len(fields))
		if len(fields) > max(maxEachFields, 2*len(raw)) {
			bad = problem{ReasonInvalidEach, fmt.Sprintf("EACH = %s gives rows of more than %d bytes together", cut(s.route.eachText, 80), maxEachFields)}
			break
		}
	}
	if bad.why != "" {
		return nil, bad
	}
	rows, fields = s.arena.rows.keep(rows), s.arena.bytes.keep(fields)
	start := 0
	s.ends = ends
	for i, end := range ends {
		rows[i].hold(fields[start:end:end])
		start = end
	}
	return rows, problem{}
}

// hold gives the row its fields, once they stay where they are. The device id is the first of them, so that
// it need not be kept a second time.
func (r *Row) hold(fields []byte) {
	n := len(r.DeviceID)
	r.Fields, r.DeviceID = fields, unsafe.String(unsafe.SliceData(fields[4:4+n]), n)
}

// row makes one row, but for what hold adds, and appends its fields.
func (s *scratch) row(row *Row, element int, fields []byte) ([]byte, problem) {
	var (
		r            = s.route
		m            = s.message
		p            problem
		reproducible bool
	)
	if row.DeviceID, p = s.device(); p.why != "" {
		return fields, p
	}
	fields = appendText(fields, row.DeviceID)
	if row.Time, reproducible, p = s.time(); p.why != "" {
		return fields, p
	}
	if row.MessageID, p = s.messageID(row.Time, reproducible, element); p.why != "" {
		return fields, p
	}
	received, _ := fromTime(m.ReceivedAt)

	fields = appendInt8(fields, row.Time)
	fields = append(append(fields, 0, 0, 0, 16), row.MessageID[:]...)
	fields = appendInt8(fields, received)
	fields = appendText(fields, m.Topic)
	for i := range r.shortcuts {
		if filled, ok := s.usual(r.shortcuts[i], fields); ok {
			fields = filled
			continue
		}
		c := &r.columns[i]
		v := s.eval(&c.from)
		if fields, p = c.typ.appendField(fields, v, &r.columnClock); p.why != "" {
			p.why = fmt.Sprintf("column %s:%s = %s: %s %s", c.name, c.typ.name, cut(c.from.text, 80), v.show(), p.why)
			return fields, p
		}
	}
	return s.appendPayload(fields), problem{}
}

// usual appends the field of a column as most are: a number, text or UUID, or nothing, of a JSON path.
// The columns and values that are not ok go the long way to the same field.
func (s *scratch) usual(c shortcut, fields []byte) ([]byte, bool) {
	if c.slot < 0 || !s.document {
		return fields, false
	}
	s.used[c.slot] = true
	raw := s.slots[c.slot].of(s.payload)
	if raw == "" {
		return appendNull(fields), true
	}
	switch c.base {
	case typeFloat8:
		if f, ok := shortFloat(raw); ok {
			return appendInt8(fields, int64(math.Float64bits(f))), true
		}
	case typeText:
		if raw[0] == '"' && strings.IndexByte(raw, '\\') < 0 {
			return appendText(fields, raw[1:len(raw)-1]), true
		}
	case typeUUID:
		if raw[0] == '"' {
			if id, ok := readUUID(raw[1 : len(raw)-1]); ok {
				return append(append(fields, 0, 0, 0, 16), id[:]...), true
			}
		}
	}
	return fields, false
}

// usualTime reads the time as it nearly always comes: a stamp with its offset, of a JSON path.
func (s *scratch) usualTime() (micros int64, ok bool) {
	slot := s.route.shortTime
	if slot < 0 || !s.document {
		return 0, false
	}
	s.used[slot] = true
	raw := s.slots[slot].of(s.payload)
	if raw == "" || raw[0] != '"' {
		return 0, false
	}
	t, ok := readStamp(raw[1 : len(raw)-1])
	micros, why := inRange(t.micros)
	return micros, ok && t.zoned == zoneRFC3339 && why == ""
}

// device evaluates DEVICE.
func (s *scratch) device() (string, problem) {
	if level := s.filter.device; level >= 0 && level < len(s.levels) {
		if id := s.levels[level]; id != "" && len(id) <= maxDevice {
			return id, problem{}
		}
	}
	v := s.eval(&s.route.device)
	id, p := "", problem{}
	switch v.kind {
	case kindAbsent, kindNull:
		p.why = "selects nothing"
	case kindComposite:
		p.why = "selects no single value: " + v.show()
	default:
		id, p = v.text()
		switch {
		case p.why != "":
			p.why = v.show() + " " + p.why
		case id == "":
			p.why = "is empty"
		case len(id) > maxDevice:
			p.why = fmt.Sprintf("%s is longer than %d bytes", v.show(), maxDevice)
		}
	}
	if p.why != "" {
		return "", problem{ReasonInvalidDevice, "DEVICE = " + cut(s.route.device.text, 80) + ": " + p.why}
	}
	return id, problem{}
}

// time evaluates TIME. Where there is none the time of receipt stands in, which no second delivery
// will have again.
func (s *scratch) time() (micros int64, reproducible bool, p problem) {
	received, why := fromTime(s.message.ReceivedAt)
	if why != "" {
		return 0, false, problem{ReasonInvalidTime, "the time of receipt " + why}
	}
	if !s.route.timed {
		return received, false, problem{}
	}
	if micros, ok := s.usualTime(); ok {
		return micros, true, problem{}
	}
	v := s.eval(&s.route.time)
	switch {
	case v.kind == kindInstant || v.missing() && s.payload == "":
		return received, false, problem{}
	case v.missing():
		why = "selects nothing"
	default:
		if micros, why = s.route.clock.parse(v); why != "" {
			why = v.show() + " " + why
		}
	}
	if why != "" {
		return 0, false, problem{ReasonInvalidTime, "TIME = " + cut(s.route.time.text, 80) + ": " + why}
	}
	return micros, true, problem{}
}

// messageID evaluates KEY.
func (s *scratch) messageID(micros int64, reproducible bool, element int) (id [16]byte, p problem) {
	r := s.route
	if r.key == keyExplicit {
		b := appendPart(append(s.buffer[:0], domainKey...), r.Name)
		for i := range r.keys {
			v := s.eval(&r.keys[i])
			if v.missing() && s.payload == "" {
				return deliveryID(s.message, r.Name, element), problem{}
			}
			if v.missing() {
				return id, problem{ReasonInvalidKey, "KEY = " + cut(r.keys[i].text, 80) + ": selects nothing"}
			}
			var ok bool
			if b, ok = appendKey(b, v); !ok {
				return id, problem{ReasonInvalidKey, fmt.Sprintf("KEY = %s: %s is no value that tells messages apart", cut(r.keys[i].text, 80), v.show())}
			}
		}
		s.buffer = b
		if reproducible {
			return eventID(micros, sha256.Sum256(b)), problem{}
		}
		return hashID(sha256.Sum256(b)), problem{}
	}
	if r.key == keyDelivery || !reproducible {
		return deliveryID(s.message, r.Name, element), problem{}
	}
	if r.Each {
		return eventID(micros, elementHash(&s.hash, element)), problem{}
	}
	return eventID(micros, s.hash), problem{}
}

// appendPayload appends the columns payload and payload_bytes as far as the table has them.
func (s *scratch) appendPayload(fields []byte) []byte {
	r := s.route
	if r.payload == payloadDrop {
		return fields
	}
	if r.format != formatJSON {
		return appendText(fields, s.payload)
	}
	raw, left := s.payload, s.payload != ""
	if !left {
		return appendText(appendNull(fields), "")
	}
	root := r.document
	if r.Each {
		root = &r.item
		raw = s.slots[root.slot].of(s.payload)
	}
	if r.payload == payloadRest {
		s.buffer, left = root.rest(s.buffer[:0], raw, s.used)
		raw = unsafe.String(unsafe.SliceData(s.buffer), len(s.buffer))
	}
	switch {
	case !left:
		return appendNull(appendNull(fields))
	case s.json.why != "": // an opaque route
		return appendText(appendNull(fields), raw)
	case jsonbRefuses(raw) != "":
		return appendText(appendNull(fields), raw) // nothing is lost: the bytes are kept
	}
	return appendNull(appendJSONB(fields, raw))
}

// eval gives the first value that is present and not null.
func (s *scratch) eval(e *expression) value {
	var v value
	for i := range e.terms {
		if v = s.term(&e.terms[i]); !v.missing() {
			break
		}
	}
	return v
}

func (s *scratch) term(t *term) value {
	m := s.message
	switch t.source {
	case sourceLiteral:
		return t.value
	case sourceCapture:
		return s.capture(t.name)
	case sourceTopic:
		return value{kind: kindText, clean: true, str: m.Topic}
	case sourceLevel:
		i := t.index - 1
		if t.index < 0 {
			i = len(s.levels) + t.index
		}
		if i < 0 || i >= len(s.levels) || t.filled && s.levels[i] == "" {
			return value{}
		}
		return value{kind: kindText, clean: true, str: s.levels[i]}
	case sourceDocument, sourceElement:
		if t.source == sourceDocument && !s.document || t.source == sourceElement && !s.element {
			return value{}
		}
		s.used[t.node.slot] = true
		return rawValue(s.slots[t.node.slot].of(s.payload))
	case sourceUser:
		for i := range m.UserProperties {
			if m.UserProperties[i].Name == t.name {
				return value{kind: kindText, str: m.UserProperties[i].Value}
			}
		}
		return value{}
	case sourceContentType:
		if m.ContentType == "" {
			return value{}
		}
		return value{kind: kindText, str: m.ContentType}
	case sourceCorrelation:
		if m.CorrelationData == nil {
			return value{}
		}
		return value{kind: kindBytes, str: string(m.CorrelationData)}
	case sourceQoS:
		return value{kind: kindNumber, str: string('0' + rune(m.QoS))}
	case sourceRetain:
		if m.Retain {
			return value{kind: kindBool, str: "true"}
		}
		return value{kind: kindBool, str: "false"}
	case sourceReceivedAt:
		micros, why := fromTime(m.ReceivedAt)
		if why != "" {
			return value{}
		}
		return value{kind: kindInstant, micros: micros}
	default: // sourcePayload
		switch {
		case s.payload == "":
			return value{}
		case s.route.format == formatText:
			return value{kind: kindText, clean: true, str: s.payload}
		case s.route.format == formatRaw:
			return value{kind: kindBytes, str: s.payload}
		}
		s.used[s.route.document.slot] = true
		return rawValue(s.payload)
	}
}

// capture is what stands in the topic where the matching filter has the name.
func (s *scratch) capture(name string) value {
	for i := range s.filter.captures {
		c := &s.filter.captures[i]
		switch {
		case c.name != name:
		case c.level >= len(s.levels): // {name...} matched the level above
			return value{}
		case !c.rest:
			return value{kind: kindText, clean: true, str: s.levels[c.level]}
		default:
			start := 0
			for _, level := range s.levels[:c.level] {
				start += len(level) + 1
			}
			return value{kind: kindText, clean: true, str: s.message.Topic[start:]}
		}
	}
	return value{}
}
