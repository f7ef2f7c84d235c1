package mapping

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// maxTable leaves room behind a table's name for the names of its partitions.
const maxTable = 48

// Compile makes routes of their configuration. All mistakes are reported at once: the error joins
// one *ConfigError for each. Without any configuration there is one route, messages, that takes
// every topic into a table of the same name.
func Compile(configs []RouteConfig) (*Routes, error) {
	if len(configs) == 0 {
		configs = []RouteConfig{{Name: "messages", Topic: "#"}}
	}
	var (
		routes = Routes{document: &node{}}
		errs   []error
		names  = make(map[string]bool)
	)
	for i := range configs {
		config := trimmed(configs[i])
		c := &compiler{config: &config, route: &Route{Name: config.Name, document: routes.document}}
		switch {
		case !isName(c.config.Name) || len(c.config.Name) > maxTable:
			errs = append(errs, &ConfigError{
				"BRIDGE_ROUTES", cut(c.config.Name, 80),
				fmt.Sprintf("expected names of lower-case letters, digits and _, not beginning with a digit, at most %d bytes", maxTable),
			})
			continue
		case c.config.Name == "none":
			errs = append(errs, &ConfigError{"BRIDGE_ROUTES", c.config.Name, "expected another name: none stands for messages that no route matches"})
			continue
		case names[c.config.Name]:
			errs = append(errs, &ConfigError{"BRIDGE_ROUTES", c.config.Name, "this route stands twice"})
			continue
		}
		names[c.config.Name] = true
		c.compile()
		errs = append(errs, c.errs...)
		routes.routes = append(routes.routes, c.route)
	}
	if len(errs) == 0 { // else tables are half read, and would differ for no reason
		errs = checkTables(routes.routes)
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	shared := routes.document.number(0)
	routes.slots = shared
	numberRoutes(routes.routes)
	for i, route := range routes.routes {
		routes.slots = max(routes.slots, route.item.number(shared))
		route.shorten()
		for j := range route.filters {
			routes.trie.add(route.filters[j].levels, match{i, j})
		}
	}
	cover := coverOf(routes.routes)
	for _, f := range cover {
		routes.filters = append(routes.filters, f.text)
	}
	routes.copies = copiesOf(routes.filters)
	routes.warnings = warnings(routes.routes, cover)
	return &routes, nil
}

// numberRoutes gives the routes their numbers.
func numberRoutes(routes []*Route) {
	sorted := slices.Clone(routes)
	slices.SortFunc(sorted, func(x, y *Route) int {
		return cmp.Or(cmp.Compare(x.Table.Schema, y.Table.Schema), cmp.Compare(x.Table.Name, y.Table.Name), cmp.Compare(x.Name, y.Name))
	})
	for i, route := range sorted {
		route.Number = i
	}
}

// trimmed is the configuration without white space around its values. COLUMNS and KEY stay as they
// are, so that mistakes in them are told at their place.
func trimmed(c RouteConfig) RouteConfig {
	for _, value := range []*string{
		&c.Topic, &c.Format, &c.Table, &c.Each, &c.Device, &c.Time, &c.TimeFormat, &c.TimeZone, &c.Payload,
		&c.OnEmpty, &c.Retained, &c.Latest, &c.Partition, &c.Retention, &c.ProtoFile, &c.ProtoMessage,
	} {
		*value = strings.TrimSpace(*value)
	}
	return c
}

// compiler makes one route. It goes on behind a mistake, to find them all.
type compiler struct {
	config *RouteConfig
	route  *Route
	errs   []error
}

func (c *compiler) fail(suffix, value, reason string) {
	c.errs = append(c.errs, &ConfigError{variable(c.config.Name, suffix), cut(value, 80), reason})
}

// variable is the name of the environment variable that holds a setting of a route.
func variable(route, suffix string) string {
	return "BRIDGE_ROUTE_" + strings.ToUpper(route) + "_" + suffix
}

// choose is the setting's value if it is one of the options, of which the first is the default.
func (c *compiler) choose(suffix, value string, options ...string) string {
	if value == "" {
		return options[0]
	}
	if !slices.Contains(options, value) {
		c.fail(suffix, value, "expected "+strings.Join(options, " or "))
		return options[0]
	}
	return value
}

func (c *compiler) compile() {
	r, config := c.route, c.config
	c.topic()
	c.format()
	r.storeEmpty = c.choose("ON_EMPTY", config.OnEmpty, "skip", "store") == "store"
	r.storeRetained = c.choose("RETAINED", config.Retained, "skip", "store") == "store"
	switch c.choose("PAYLOAD", config.Payload, "keep", "drop", "rest") {
	case "drop":
		r.payload = payloadDrop
	case "rest":
		r.payload = payloadRest
	}
	if r.payload == payloadRest && r.format != formatJSON {
		c.fail("PAYLOAD", "rest", "expected keep or drop, as only FORMAT=json has fields")
	}
	if config.Latest != "" {
		c.fail("LATEST", config.Latest, "is not supported by this version")
	}
	c.each()
	c.device()
	r.findDevice()
	c.time()
	c.columns()
	c.key()
	r.opaque = r.format == formatJSON && r.payload == payloadKeep && !r.looksInside()
	c.table()
	c.partition()
}

func (c *compiler) topic() {
	patterns := strings.Fields(c.config.Topic)
	if len(patterns) == 0 {
		c.fail("TOPIC", "", "is required: expected a topic filter such as devices/{device_id}/telemetry")
	}
	for _, pattern := range patterns {
		f, err := parseFilter(pattern)
		if err != nil {
			c.fail("TOPIC", pattern, err.Error())
			continue
		}
		c.route.filters = append(c.route.filters, f)
		c.route.Filters = append(c.route.Filters, f.text)
	}
}

func (c *compiler) format() {
	switch name := c.config.Format; name {
	case "", "json":
	case "text":
		c.route.format = formatText
	case "raw":
		c.route.format = formatRaw
	case "csv", "cbor", "msgpack", "protobuf", "sparkplug":
		c.fail("FORMAT", name, "is not supported by this version; expected json, text or raw")
	default:
		c.fail("FORMAT", name, "expected json, text or raw")
	}
	if c.config.Format != "protobuf" {
		const only = "is for FORMAT=protobuf only"
		if c.config.ProtoFile != "" {
			c.fail("PROTO_FILE", c.config.ProtoFile, only)
		}
		if c.config.ProtoMessage != "" {
			c.fail("PROTO_MESSAGE", c.config.ProtoMessage, only)
		}
	}
}

func (c *compiler) each() {
	text := c.config.Each
	if text == "" {
		return
	}
	e, err := parseExpression(text)
	switch {
	case err != nil:
		c.fail("EACH", text, err.Error())
	case len(e.terms) != 1 || e.terms[0].source != sourceDocument:
		c.fail("EACH", text, "expected a JSONPath to an array, such as $.readings")
	case c.route.format != formatJSON:
		c.fail("EACH", text, "needs FORMAT=json")
	default:
		c.route.Each = true
		c.route.eachText = e.text
		c.route.each = c.route.document.at(e.terms[0].path)
	}
}

// bind checks an expression against the route and ties its paths to the nodes of the document.
func (c *compiler) bind(suffix string, e *expression) {
	r := c.route
	for i := range e.terms {
		t := &e.terms[i]
		switch t.source {
		case sourceCapture:
			if len(r.filters) > 0 && !slices.ContainsFunc(r.filters, func(f filter) bool { return f.has(t.name) }) {
				c.fail(suffix, e.text, fmt.Sprintf("no topic pattern of the route captures {%s}", t.name))
			}
		case sourceDocument:
			if r.format != formatJSON {
				c.fail(suffix, e.text, fmt.Sprintf("JSONPath needs FORMAT=json; with FORMAT=%s write payload", r.format))
			}
			t.node = r.document.at(t.path)
		case sourceElement:
			if c.config.Each == "" {
				c.fail(suffix, e.text, "@ is an element of EACH, which is not set; expected $ for the document")
			}
			t.node = r.item.at(t.path)
		}
	}
}

func (f *filter) has(capture string) bool {
	for i := range f.captures {
		if f.captures[i].name == capture {
			return true
		}
	}
	return false
}

// single reads a setting that is one expression.
func (c *compiler) single(suffix, text string) expression {
	e, err := parseExpression(text)
	if err != nil {
		c.fail(suffix, text, err.Error())
		return expression{}
	}
	c.bind(suffix, &e)
	return e
}

func (c *compiler) device() {
	r := c.route
	if c.config.Device == "" {
		r.device = expression{text: "topic[2] ?? topic", terms: []term{{source: sourceLevel, index: 2, filled: true}, {source: sourceTopic}}}
		if len(r.filters) > 0 && !slices.ContainsFunc(r.filters, func(f filter) bool { return !f.has("device_id") }) {
			r.device = expression{text: "{device_id}", terms: []term{{source: sourceCapture, name: "device_id"}}}
		}
		return
	}
	r.device = c.single("DEVICE", c.config.Device)
	if r.device.reads(sourceReceivedAt) {
		c.fail("DEVICE", r.device.text, "a device must not be named by the time of receipt, which differs with each delivery")
	}
}

// findDevice looks for the level that is the device id in each filter.
func (r *Route) findDevice() {
	if len(r.device.terms) != 1 || r.device.terms[0].source != sourceCapture {
		return
	}
	for i := range r.filters {
		for _, c := range r.filters[i].captures {
			if c.name == r.device.terms[0].name && !c.rest {
				r.filters[i].device = c.level
			}
		}
	}
}

// shorten notes the shortcuts, once the nodes of the document have their slots.
func (r *Route) shorten() {
	r.timed, r.shortTime = r.time.terms != nil, r.time.slot()
	if r.clock.form > formRFC3339 {
		r.shortTime = -1
	}
	for i := range r.columns {
		c := &r.columns[i]
		short := shortcut{-1, c.typ.base}
		if !c.typ.array {
			short.slot = c.from.slot()
		}
		r.shortcuts = append(r.shortcuts, short)
	}
}

// slot is that of an expression which is one JSONPath into document or element; -1: it is not.
func (e *expression) slot() int {
	if len(e.terms) != 1 || e.terms[0].node == nil {
		return -1
	}
	return e.terms[0].node.slot
}

// looksInside reports whether anything the route makes of a message depends on its payload being
// JSON, other than the column that keeps it.
func (r *Route) looksInside() bool {
	expressions := append([]expression{r.device, r.time}, r.keys...)
	for i := range r.columns {
		expressions = append(expressions, r.columns[i].from)
	}
	return r.Each || slices.ContainsFunc(expressions, func(e expression) bool {
		return e.reads(sourceDocument) || e.reads(sourceElement) || e.reads(sourcePayload)
	})
}

// reads reports whether some term of the expression is from the source.
func (e *expression) reads(s source) bool {
	return slices.ContainsFunc(e.terms, func(t term) bool { return t.source == s })
}

func (c *compiler) time() {
	r, config := c.route, c.config
	clock, err := newClock(config.TimeFormat, config.TimeZone)
	switch {
	case errors.Is(err, errZone):
		c.fail("TIME_ZONE", config.TimeZone, err.Error())
	case err != nil:
		c.fail("TIME_FORMAT", config.TimeFormat, err.Error())
	}
	r.clock = clock
	r.columnClock = clock
	r.columnClock.format, r.columnClock.form = "auto", formAuto
	switch {
	case config.Time != "":
		r.time = c.single("TIME", config.Time)
	case config.TimeFormat != "":
		c.fail("TIME_FORMAT", config.TimeFormat, "has no effect without TIME")
	}
}

func (c *compiler) columns() {
	columns, errs := parseColumns(c.config.Columns, c.route.format)
	for _, err := range errs {
		c.fail("COLUMNS", err.item, err.Error())
	}
	for i := range columns {
		col := &columns[i]
		c.bind("COLUMNS", &col.from)
		if err := col.checkConstants(&c.route.columnClock); err != nil {
			c.fail("COLUMNS", col.name+":"+col.typ.name+" = "+col.from.text, err.Error())
		}
	}
	c.route.columns = columns
	zoned := func(col column) bool { return col.typ.base == typeTimestamptz }
	if c.route.clock.zone != nil && c.config.Time == "" && errs == nil && !slices.ContainsFunc(columns, zoned) {
		c.fail("TIME_ZONE", c.config.TimeZone, "has no effect without TIME or a column of type timestamptz")
	}
}

func (c *compiler) key() {
	r := c.route
	switch strings.TrimSpace(c.config.Key) {
	case "", "auto":
		r.key = keyAuto
		r.Keyed = slices.ContainsFunc(r.time.terms, func(t term) bool { return t.source != sourceReceivedAt })
		return
	case "delivery":
		r.key = keyDelivery
		return
	}
	r.key, r.Keyed = keyExplicit, true
	before := len(c.errs)
	keys, err := parseExpressions(c.config.Key)
	if err != nil {
		c.fail("KEY", c.config.Key, err.Error()+" (or auto, or delivery)")
	}
	for i := range keys {
		c.bind("KEY", &keys[i])
		if keys[i].reads(sourceReceivedAt) {
			c.fail("KEY", keys[i].text, "the time of receipt differs with each delivery and identifies no message")
		}
	}
	r.keys = keys
	for i := range keys {
		r.KeyExpressions = append(r.KeyExpressions, keys[i].text)
	}
	if len(c.errs) > before {
		r.key = keyAuto // what an explicit key forbids is not told: it may not be meant to be one
	}
}

// table lays out the route's table.
func (c *compiler) table() {
	r, t := c.route, &c.route.Table
	text := c.config.Table
	if text == "" {
		text = r.Name
	}
	schema, name, qualified := strings.Cut(text, ".")
	if !qualified {
		schema, name = "", text
	}
	if qualified && (!isName(schema) || len(schema) > maxIdentifier || strings.HasPrefix(schema, "pg_")) {
		c.fail("TABLE", text, fmt.Sprintf("expected a schema of lower-case letters, digits and _, not beginning with a digit or pg_, at most %d bytes", maxIdentifier))
	}
	if !isName(name) || len(name) > maxTable {
		c.fail("TABLE", text, fmt.Sprintf("expected a table name of lower-case letters, digits and _, not beginning with a digit, at most %d bytes (partitions add to it)", maxTable))
	}
	t.Schema, t.Name = schema, name
	fixed := func(name string, base baseType, notNull bool) {
		t.Columns = append(t.Columns, Column{name, baseTypes[base].name, baseTypes[base].oid, notNull})
	}
	fixed("device_id", typeText, true)
	fixed("time", typeTimestamptz, true)
	fixed("message_id", typeUUID, true)
	fixed("received_at", typeTimestamptz, true)
	fixed("topic", typeText, true)
	for i := range r.columns {
		col := &r.columns[i]
		t.Columns = append(t.Columns, Column{col.name, col.typ.name, col.typ.oid(), false})
	}
	if r.payload != payloadDrop {
		if r.format == formatJSON {
			fixed("payload", typeJSONB, false)
		}
		fixed("payload_bytes", typeBytea, false)
	}
	t.KeyColumns = []string{"device_id", "time", "message_id"}
	if r.key == keyExplicit && c.config.Time == "" {
		t.KeyColumns = []string{"device_id", "message_id"}
	}
}

func (c *compiler) partition() {
	config, t := c.config, &c.route.Table
	t.Partition = Partition(c.choose("PARTITION", config.Partition, "day", "week", "month", "none"))
	if config.Retention != "" {
		var ok bool
		if t.Retention, ok = parseRetention(config.Retention); !ok {
			c.fail("RETENTION", config.Retention, "expected a duration such as 90d, 12w or 36h")
		}
	}
	if len(t.KeyColumns) == 2 { // an explicit key and no event time
		const why = "KEY without TIME makes a table without partitions (the time of receipt differs with each delivery and cannot stand in a unique key): " +
			"set TIME, or leave %s out"
		if config.Partition == "" {
			t.Partition = PartitionNone
		} else if t.Partition != PartitionNone {
			c.fail("PARTITION", config.Partition, fmt.Sprintf(why, "PARTITION"))
		}
		if config.Retention != "" {
			c.fail("RETENTION", config.Retention, fmt.Sprintf(why, "RETENTION"))
		}
	} else if config.Retention != "" && t.Partition == PartitionNone {
		c.fail("RETENTION", config.Retention, "needs PARTITION=day, week or month: it drops whole partitions")
	}
}

// parseRetention reads a Go duration that may begin with weeks and days, as in 12w, 90d or 1d12h.
func parseRetention(text string) (total time.Duration, ok bool) {
	for _, unit := range []struct {
		letter string
		length time.Duration
	}{{"w", 7 * 24 * time.Hour}, {"d", 24 * time.Hour}} {
		number, rest, found := strings.Cut(text, unit.letter)
		if !found {
			continue
		}
		n, err := strconv.ParseUint(number, 10, 32)
		if err != nil || n > uint64(100*365*24*time.Hour/unit.length) {
			return 0, false
		}
		total += time.Duration(n) * unit.length
		text = rest
	}
	if text != "" {
		d, err := time.ParseDuration(text)
		if err != nil || d < 0 {
			return 0, false
		}
		total += d
	}
	return total, total > 0
}

// RetentionText is a retention as people write it, in days rather than hours.
func RetentionText(d time.Duration) string {
	if d == 0 {
		return "none"
	}
	text := ""
	if days := d / (24 * time.Hour); days > 0 {
		text = strconv.Itoa(int(days)) + "d"
	}
	if d %= 24 * time.Hour; d == 0 {
		return text
	}
	rest := d.String()
	for _, zero := range []string{"m0s", "h0m"} {
		if strings.HasSuffix(rest, zero) {
			rest = rest[:len(rest)-2]
		}
	}
	return text + rest
}

// checkTables finds routes that want the same table in different ways. Each is compared with the first route of its
// table, and its columns with the first route that has them, so that a mistake is told once.
func checkTables(routes []*Route) (errs []error) {
	type place struct{ schema, table, column string }
	type owner struct {
		route  *Route
		column Column
	}
	first := make(map[place]owner)
	for _, r := range routes {
		t := &r.Table
		differ := func(other *Route, suffix, value, reason string) {
			errs = append(errs, &ConfigError{variable(r.Name, suffix), cut(value, 80), fmt.Sprintf("route %s, which shares table %s, %s", other.Name, t.Name, reason)})
		}
		at := place{schema: t.Schema, table: t.Name}
		if a, shared := first[at]; !shared {
			first[at] = owner{route: r}
		} else {
			s := &a.route.Table
			alike := slices.Equal(s.KeyColumns, t.KeyColumns)
			if !alike { // which decides over partitions and retention, too
				differ(a.route, "KEY", "", fmt.Sprintf("has rows unique by (%s), this one by (%s): both or neither need TIME", strings.Join(s.KeyColumns, ", "), strings.Join(t.KeyColumns, ", ")))
			}
			if alike && s.Partition != t.Partition {
				differ(a.route, "PARTITION", string(t.Partition), "has "+string(s.Partition))
			}
			switch {
			case !alike || s.Retention == t.Retention:
			case t.Retention == 0:
				differ(a.route, "RETENTION", "", "has "+RetentionText(s.Retention)+", this one has none")
			default:
				differ(a.route, "RETENTION", RetentionText(t.Retention), "has "+RetentionText(s.Retention))
			}
		}
		for _, column := range t.Columns {
			at.column = column.Name
			a, shared := first[at]
			switch {
			case !shared:
				first[at] = owner{r, column}
			case a.column.Type != column.Type:
				differ(a.route, "COLUMNS", column.Name+":"+column.Type, "has "+column.Name+":"+a.column.Type)
			}
		}
	}
	return errs
}

// quote puts quotes around a value and makes it printable.
func quote(s string) string { return strconv.Quote(s) }
