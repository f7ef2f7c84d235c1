package store

import (
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/mqttpg/bridge/mapping"
)

// DDL returns the statements that would make a route's table in an empty database. Partitions other
// than the default one depend on the date and are left out.
func DDL(t *mapping.Table) []string {
	partitioned := ""
	if t.Partition != mapping.PartitionNone && t.Partition != "" {
		partitioned = ` partition by range ("time")`
	}
	lines := make([]string, 0, len(t.Columns)+1)
	for _, c := range t.Columns {
		line := "    " + columnDefinition(c)
		if c.OID == pgtype.TextOID && slices.Contains(t.KeyColumns, c.Name) {
			// The index compares bytes and need not ask the locale, which costs a tenth of an insert and more.
			line = "    " + columnDefinition(mapping.Column{Name: c.Name, Type: c.Type + ` collate "C"`, NotNull: c.NotNull})
		}
		lines = append(lines, line)
	}
	lines = append(lines, "    primary key ("+quoteAll(t.KeyColumns)+")")
	statements := []string{"create table " + tableIdentifier(t).Sanitize() + " (\n" + strings.Join(lines, ",\n") + "\n)" + partitioned}
	if partitioned != "" {
		statements = append(statements, fmt.Sprintf("create table %s partition of %s default",
			partitionIdentifier(t.Schema, t.Name, defaultSuffix).Sanitize(), tableIdentifier(t).Sanitize()))
	}
	return statements
}

func columnDefinition(c mapping.Column) string {
	d := pgx.Identifier{c.Name}.Sanitize() + " " + c.Type
	if c.NotNull {
		d += " not null"
	}
	return d
}

// tableIdentifier leaves the schema out when search_path decides.
func tableIdentifier(t *mapping.Table) pgx.Identifier {
	if t.Schema == "" {
		return pgx.Identifier{t.Name}
	}
	return pgx.Identifier{t.Schema, t.Name}
}

// tableName is a table's name for people.
func tableName(t *mapping.Table) string { return strings.Join(tableIdentifier(t), ".") }

func partitionIdentifier(schema, table, suffix string) pgx.Identifier {
	if schema == "" {
		return pgx.Identifier{table + suffix}
	}
	return pgx.Identifier{schema, table + suffix}
}
