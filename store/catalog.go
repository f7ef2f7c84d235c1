package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/mqttpg/bridge/mapping"
)

// TableError says why a route cannot write to its table as it stands. Only the operator can mend it.
type TableError struct {
	Table  string
	Reason string
}

func (e *TableError) Error() string { return "table " + e.Table + ": " + e.Reason }

// catalogTable is a table as the database has it.
type catalogTable struct {
	oid         uint32
	schema      string
	name        string
	role        string // that asks
	partitioned bool   // by range over the column time alone
	writable    bool   // the role may insert
	owned       bool   // the role may change the table
	deletable   bool   // the role may delete rows
	copied      bool   // COPY does what an insert does
	triggers    bool   // a trigger runs before the insert of a row
	columns     map[string]catalogColumn
	imprint     int64      // of the columns, see imprint
	uniqueKeys  [][]string // columns of each unique index that on conflict can use, sorted
}

type catalogColumn struct {
	name      string
	oid       uint32 // of the type, that of the base type for a domain
	kind      int64  // the type with its modifiers, as columnKind tells it
	typeName  string
	required  bool // not null and without default
	generated bool
	identity  bool // always generated, unless the value is copied
	readable  bool // the role may select it
}

// querier is what a pool, a connection and a transaction have in common.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// inspect reads a table from the catalog; nil when it does not exist.
func inspect(ctx context.Context, db querier, t *mapping.Table) (*catalogTable, error) {
	c := &catalogTable{columns: map[string]catalogColumn{}}
	var kind string
	var insert bool
	err := db.QueryRow(ctx, `
		select c.oid, n.nspname::text, c.relname::text, current_user::text, c.relkind::text,
		       has_table_privilege(c.oid, 'insert') or has_any_column_privilege(c.oid, 'insert'), pg_has_role(c.relowner, 'usage'),
		       has_table_privilege(c.oid, 'delete'),
		       coalesce(p.partstrat = 'r' and p.partnatts = 1 and
		                (select a.attname from pg_catalog.pg_attribute a where a.attrelid = c.oid and a.attnum = p.partattrs[0]) = 'time', false),
		       c.relkind in ('r', 'p') and not row_security_active(c.oid) and
		       not exists (select from pg_catalog.pg_rewrite r where r.ev_class = c.oid) and not tree.abroad, tree.triggers
		from pg_catalog.pg_class c
		join pg_catalog.pg_namespace n on n.oid = c.relnamespace
		left join pg_catalog.pg_partitioned_table p on p.partrelid = c.oid
		cross join lateral (`+partitionTree+`) tree
		where c.oid = pg_catalog.to_regclass($1)`, tableIdentifier(t).Sanitize()).
		Scan(&c.oid, &c.schema, &c.name, &c.role, &kind, &insert, &c.owned, &c.deletable, &c.partitioned, &c.copied, &c.triggers)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look up table %s: %w", tableName(t), err)
	}
	if !strings.Contains("rpfv", kind) {
		return nil, &TableError{tableName(t), "is neither a table nor a view"}
	}
	c.writable = insert

	rows, err := db.Query(ctx, `
		select a.attname::text, case when t.typtype = 'd' then t.typbasetype else t.oid end,
		       `+columnKind+`, pg_catalog.format_type(a.atttypid, a.atttypmod),
		       a.attnotnull and not a.atthasdef and a.attidentity = '', a.attgenerated <> '', a.attidentity = 'a',
		       has_column_privilege(a.attrelid, a.attnum, 'select'), (`+imprint+` over ())::int8
		from pg_catalog.pg_attribute a join pg_catalog.pg_type t on t.oid = a.atttypid
		where a.attrelid = $1::oid and a.attnum > 0 and not a.attisdropped
		order by a.attnum`, int64(c.oid))
	if err != nil {
		return nil, fmt.Errorf("look up columns of %s: %w", tableName(t), err)
	}
	var column catalogColumn
	_, err = pgx.ForEachRow(rows, []any{&column.name, &column.oid, &column.kind, &column.typeName, &column.required, &column.generated, &column.identity, &column.readable, &c.imprint}, func() error {
		c.columns[column.name] = column
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look up columns of %s: %w", tableName(t), err)
	}

	// Usable as the arbiter of on conflict (columns): unique, valid, immediate, whole, of plain columns.
	rows, err = db.Query(ctx, `
		select array(select a.attname::text from pg_catalog.pg_attribute a
		             where a.attrelid = i.indrelid and a.attnum = any ((i.indkey::int2[])[0:i.indnkeyatts - 1]) order by 1)
		from pg_catalog.pg_index i
		where i.indrelid = $1::oid and i.indisunique and i.indisvalid and i.indimmediate and i.indpred is null and i.indexprs is null`, int64(c.oid))
	if err != nil {
		return nil, fmt.Errorf("look up indexes of %s: %w", tableName(t), err)
	}
	c.uniqueKeys, err = pgx.CollectRows(rows, pgx.RowTo[[]string])
	if err != nil {
		return nil, fmt.Errorf("look up indexes of %s: %w", tableName(t), err)
	}
	return c, nil
}

// partitionTree tells of a table c of pg_class and all its partitions whether one is foreign, and whether a row has a
// trigger before its insert. pg_partition_tree would wait for the lock of each partition, and a join would read
// all relations of the database.
const partitionTree = `
	with recursive tree as (
		select c.oid union all
		select i.inhrelid from tree join pg_catalog.pg_inherits i on i.inhparent = tree.oid where c.relkind = 'p')
	select coalesce(bool_or((select f.relkind from pg_catalog.pg_class f where f.oid = tree.oid) = 'f'), false) as abroad,
	       bool_or(exists (select from pg_catalog.pg_trigger t
	               where t.tgrelid = tree.oid and t.tgtype & 7 = 7 and t.tgenabled <> 'D' and not t.tgisinternal)) as triggers
	from tree`

// missing returns the columns that the table lacks, or says why the route cannot use it.
func (c *catalogTable) missing(t *mapping.Table) ([]mapping.Column, error) {
	if !c.writable {
		return nil, &TableError{tableName(t), "the role has no privilege to insert: " + c.grant("select, insert")}
	}
	var missing []mapping.Column
	for _, want := range t.Columns {
		have, ok := c.columns[want.Name]
		switch {
		case !ok && slices.Contains(t.KeyColumns, want.Name):
			return nil, &TableError{tableName(t), fmt.Sprintf("has no column %s, which belongs to the key (%s) of a route table and is not added to a table that is there",
				want.Name, strings.Join(t.KeyColumns, ", "))}
		case !ok:
			missing = append(missing, want)
		case have.generated:
			return nil, &TableError{tableName(t), fmt.Sprintf("column %s is generated, the route cannot write it", want.Name)}
		case !sameType(have.oid, want.OID):
			return nil, &TableError{tableName(t), fmt.Sprintf("column %s is %s, the route writes %s: %s", want.Name, have.typeName, want.Type, c.retype(want, have))}
		case slices.Contains(t.KeyColumns, want.Name) && !have.readable && c.unique(t.KeyColumns):
			// on conflict (columns) reads them.
			return nil, &TableError{tableName(t), fmt.Sprintf("the role has no privilege to select column %s, by which duplicates are recognised: %s", want.Name, c.grant("select, insert"))}
		}
	}
	return missing, nil
}

// grant is the statement that gives the role privileges on the table.
func (c *catalogTable) grant(privileges string) string {
	return "grant " + privileges + " on " + c.identifier().Sanitize() + " to " + pgx.Identifier{c.role}.Sanitize()
}

// retype says how a column and what a route writes to it become of one type.
func (c *catalogTable) retype(want mapping.Column, have catalogColumn) string {
	name := pgx.Identifier{want.Name}.Sanitize()
	alter := fmt.Sprintf("alter table %s alter column %s type %s using %[2]s::%[3]s", c.identifier().Sanitize(), name, want.Type)
	if want.NotNull || want.Name == "payload" || want.Name == "payload_bytes" { // one of the bridge's own, which no COLUMNS names
		return alter
	}
	return "write " + want.Name + ":" + have.typeName + " in COLUMNS, or " + alter
}

// rounds says that the column keeps fewer digits behind the point than the type has that a route writes.
func (c *catalogColumn) rounds(written string) bool {
	modifier := int32(c.kind) // the lower half
	if modifier < 0 {
		return false
	}
	switch c.oid {
	case pgtype.NumericOID:
		const bits = 11 // of the scale, which may be negative
		scale := (modifier - 4) << (32 - bits) >> (32 - bits)
		var precision, want int32
		if _, err := fmt.Sscanf(written, "numeric(%d,%d)", &precision, &want); err != nil {
			return true
		}
		return scale < want
	case pgtype.TimestampOID, pgtype.TimestamptzOID:
		const microseconds = 6
		return modifier < microseconds
	}
	return false
}

func (c *catalogTable) identifier() pgx.Identifier { return pgx.Identifier{c.schema, c.name} }

// sameType says that values of a type may be sent as the other: text and varchar are one and the same
// on the wire, and tables made by people have either.
func sameType(have, want uint32) bool {
	text := func(oid uint32) bool { return oid == pgtype.TextOID || oid == pgtype.VarcharOID }
	return have == want || text(have) && text(want)
}

// copyable says whether rows of these columns can be copied into the table as they are inserted. COPY
// passes over rules, is refused where row level security holds and for views, and writes the values of
// identity columns that an insert is refused for. Foreign tables are left alone.
func (c *catalogTable) copyable(columns []mapping.Column) bool {
	return c.copied && !slices.ContainsFunc(columns, func(want mapping.Column) bool { return c.columns[want.Name].identity })
}

// unique says whether on conflict (key) can be used.
func (c *catalogTable) unique(key []string) bool {
	want := slices.Sorted(slices.Values(key))
	return slices.ContainsFunc(c.uniqueKeys, func(have []string) bool { return slices.Equal(have, want) })
}

// warnings says what an operator should know about a table that is used as it is.
func (c *catalogTable) warnings(route *mapping.Route) []string {
	t := &route.Table
	var w []string
	if !c.unique(t.KeyColumns) {
		consequence := "what a publisher sends again, or a broker that has lost the session, makes a second row"
		if !route.Keyed {
			consequence = "a message of QoS 0 and a replayed dead letter can make a second row"
		}
		w = append(w, fmt.Sprintf("table %s has no unique index on exactly (%s): %s; redeliveries by the broker within its session are still recognised, by the delivery ledger",
			tableName(t), strings.Join(t.KeyColumns, ", "), consequence))
	}
	for _, name := range slices.Sorted(maps.Keys(c.columns)) {
		if c.columns[name].required && !slices.ContainsFunc(t.Columns, func(w mapping.Column) bool { return w.Name == name }) {
			w = append(w, fmt.Sprintf("table %s: column %s must not be null, has no default and is not written by the route: unless a trigger fills it, every row will be refused", tableName(t), name))
		}
	}
	for _, want := range t.Columns {
		if have := c.columns[want.Name]; sameType(have.oid, want.OID) && have.rounds(want.Type) {
			w = append(w, fmt.Sprintf("table %s: column %s is %s: PostgreSQL rounds what the route writes, %s", tableName(t), want.Name, have.typeName, want.Type))
		}
	}
	if t.Partition != mapping.PartitionNone && t.Partition != "" && !c.partitioned {
		warning := fmt.Sprintf("table %s is not partitioned by range of time: no partitions are made", tableName(t))
		if t.Retention > 0 {
			warning += ", retention deletes row by row"
		}
		w = append(w, warning)
	}
	if t.Retention > 0 && !c.partitioned && !c.deletable {
		w = append(w, fmt.Sprintf("table %s: the role may not delete rows, so RETENTION removes none: %s, or let bridge migrate --tables do it as a role that may",
			tableName(t), c.grant("delete")))
	}
	return w
}
