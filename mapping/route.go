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
}

// Routes is the set of all routes. It is immutable and safe for concurrent use.
type Routes struct{}
