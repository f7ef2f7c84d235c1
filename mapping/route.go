package mapping

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
	Name    string
	Filters []string // the topic filters, captures replaced by + and #
	Table   Table

	// Keyed says that MessageID is the same for every delivery of the same message, so that a
	// duplicate can be recognised in the table. Single rows of a keyed route may still lack a
	// reproducible id (an event time that fell back to the receipt time).
	Keyed bool
	// Each says that a message may give any number of rows, not just one.
	Each bool

	filters       []filter
	format        format
	device        expression
	time          expression // no terms: the time of receipt
	clock         clock      // of TIME
	columnClock   clock      // of columns
	columns       []column
	key           keyMode
	keys          []expression
	payload       payloadMode
	storeEmpty    bool
	storeRetained bool
	opaque        bool // FORMAT=json, but only kept, never looked into: what is no JSON is kept as bytes

	document *node // what expressions of all routes name below $
	item     node  // and those of this one below @
	each     *node // the array of EACH, below document
	eachText string
}

type format string

const (
	formatJSON format = "json"
	formatText format = "text"
	formatRaw  format = "raw"
)

type payloadMode string

const (
	payloadKeep payloadMode = "keep"
	payloadDrop payloadMode = "drop"
	payloadRest payloadMode = "rest"
)

type keyMode string

const (
	keyAuto     keyMode = "auto"
	keyDelivery keyMode = "delivery"
	keyExplicit keyMode = "explicit"
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

// Warnings lists, in plain sentences, what is allowed but may surprise: subscriptions that overlap,
// filters and settings without effect, settings that lose data.
func (r *Routes) Warnings() []string { return r.warnings }
