package mapping

import "slices"

// RouteConfig is one route as the operator wrote it: the values of BRIDGE_ROUTE_<NAME>_<SUFFIX>,
// empty where unset. Compile gives the defaults.
type RouteConfig struct {
	Name         string // lower case, as in BRIDGE_ROUTES
	Topic        string
	Format       string
	Table        string
	Each         string
	Device       string
	Time         string
	TimeFormat   string
	TimeZone     string
	Columns      string
	Key          string
	Payload      string
	OnEmpty      string
	Retained     string
	Latest       string
	Partition    string
	Retention    string
	ProtoFile    string
	ProtoMessage string
}

// ConfigError is one mistake in a route's configuration.
type ConfigError struct {
	Variable string // BRIDGE_ROUTE_TELEMETRY_COLUMNS
	Value    string // the offending part, cut short
	Reason   string // what was expected
}

// Error names the variable, the offending part and what was expected, in one line.
func (e *ConfigError) Error() string {
	if e.Value == "" {
		return e.Variable + ": " + e.Reason
	}
	return e.Variable + ": " + quote(e.Value) + ": " + e.Reason
}

// Route is one compiled route. It is immutable and safe for concurrent use.
type Route struct {
	Name string
	// Number is the route's place, from 0, among all routes in the order of their tables' schema and name and then
	// their own name. Replicas that write tables in this order do not deadlock, even if some know more routes.
	Number int

	// Keyed says that MessageID is the same for every delivery of the same message, so that a
	// duplicate can be recognised in the table. Single rows of a keyed route may still lack a
	// reproducible id (an event time that fell back to the receipt time).
	Keyed bool
	// Each says that a message may give any number of rows, not just one.
	Each bool

	// What most messages need stands together and in front, so that hundreds of routes stay in the processor's cache.

	format        format
	key           keyMode
	payload       payloadMode
	storeEmpty    bool
	storeRetained bool
	opaque        bool // FORMAT=json, but only kept, never looked into: what is no JSON is kept as bytes
	timed         bool // TIME is set; else it is the time of receipt
	shortTime     int  // slot of a TIME that is one JSONPath, if no format is tried before RFC 3339; -1: it is not so
	shortcuts     []shortcut
	filters       []filter
	document      *node // what expressions of all routes name below $

	Filters []string // the topic filters, captures replaced by + and #
	Table   Table
	// KeyExpressions are those of an explicit KEY, as the operator wrote them; none: it is auto or delivery.
	KeyExpressions []string

	device      expression
	time        expression
	clock       clock // of TIME
	columnClock clock // of columns
	columns     []column
	keys        []expression

	item     node  // what expressions name below @
	each     *node // the array of EACH, below document
	eachText string
}

// shortcut is a column as most are: the value of one JSONPath.
type shortcut struct {
	slot int // -1: the column is none of these
	base baseType
}

type format uint8

const (
	formatJSON format = iota
	formatText
	formatRaw
)

func (f format) String() string { return [...]string{"json", "text", "raw"}[f] }

type payloadMode uint8

const (
	payloadKeep payloadMode = iota
	payloadDrop
	payloadRest
)

type keyMode uint8

const (
	keyAuto keyMode = iota
	keyDelivery
	keyExplicit
)

// Routes is the set of all routes. It is immutable and safe for concurrent use.
type Routes struct {
	routes   []*Route
	document *node // of all routes, so that a message is read once for all that want it
	slots    int   // of the document and the largest item
	trie     trie
	filters  []string
	copies   copies // empty unless filters overlap
	warnings []string
}

// All lists the routes in the order of the configuration. The caller must not change the list.
func (r *Routes) All() []*Route { return r.routes }

// ByName finds a route; nil if there is none of that name.
func (r *Routes) ByName(name string) *Route {
	for _, route := range r.routes {
		if route.Name == name {
			return route
		}
	}
	return nil
}

// Filters lists the topic filters to subscribe to, sorted: together they match what the routes
// match, and none covers another, so that no message comes more often than it must.
func (r *Routes) Filters() []string { return r.filters }

// NeedLedger says whether there are rows that have nothing in them by which a second delivery could be told: those
// of routes without a key, and those that may take the time of receipt for the event time.
func (r *Routes) NeedLedger() bool {
	return slices.ContainsFunc(r.routes, func(route *Route) bool { return !route.Keyed || route.time.reads(sourceReceivedAt) })
}

// Warnings lists, each behind the variables concerned, what is allowed but may surprise: subscriptions that overlap,
// filters and settings without effect, settings that lose data.
func (r *Routes) Warnings() []string { return r.warnings }
