package mapping

import "time"

// Table is the table a route writes to, as the route needs it.
type Table struct {
	Schema  string // empty: the connection's search_path decides
	Name    string
	Columns []Column // in the order of Row.Fields

	// KeyColumns make a row unique: (device_id, time, message_id), or (device_id, message_id) for
	// a route with an explicit key and no event time, whose table therefore is not partitioned.
	KeyColumns []string

	Partition Partition
	Retention time.Duration // partitions wholly older are dropped; 0 = kept for ever
}

// Column is one column of a table.
type Column struct {
	Name    string
	Type    string // PostgreSQL's name as configured, for example float8, text[], numeric(10,2)
	OID     uint32 // of the type
	NotNull bool
}

// Partition is the width of a table's range partitions over time.
type Partition string

// The partition widths.
const (
	PartitionNone  Partition = "none"
	PartitionDay   Partition = "day"
	PartitionWeek  Partition = "week" // ISO weeks, from Monday 00:00 UTC
	PartitionMonth Partition = "month"
)
