package store

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/mqttpg/bridge/mapping"
)

// TableReport is what Ensure would find and do for one route, as far as that can be told beforehand.
type TableReport struct {
	Table    string           // with the schema, where the table is or will be
	Create   bool             // the table does not exist and will be created
	Add      []mapping.Column // columns that the table lacks and that will be added
	Warnings []string         // what an operator should know all the same
	Foreign  bool             // another role owns the table and has to make its partitions
	Refused  error            // why the service would not write; nil: it would
}

// Verify looks at a route's table with the eyes of Ensure and changes nothing. ownSchema is that of the
// bridge's own tables: where it does not exist, the migrations make it before any table, and
// search_path may then lead there. The error is the database's own trouble.
func Verify(ctx context.Context, conn *pgx.Conn, ownSchema string, route *mapping.Route) (TableReport, error) {
	r, table, err := newSurvey(conn, ownSchema).look(ctx, route)
	r.Foreign = table != nil && table.partitioned && !table.owned && route.Table.Partition != mapping.PartitionNone
	if err != nil && classify(err) == verdictRoute {
		r.Refused, err = err, nil
	}
	return r, err
}

// Alias is what to tell of a route if its table turns out to be that of the other route, which names it in another way:
// the configuration alone could not compare what the two want of it. It is empty if both say the same name.
func Alias(route, other *mapping.Route) string {
	name, same := tableName(&route.Table), tableName(&other.Table)
	if name == same {
		return ""
	}
	return fmt.Sprintf("TABLE %s is the same table as TABLE %s of route %s: name it alike in both, so that what they want of it is compared", name, same, other.Name)
}

// look is what Ensure and Verify have in common: everything but the doing. The table is nil when it
// does not exist.
func (s *survey) look(ctx context.Context, route *mapping.Route) (TableReport, *catalogTable, error) {
	want := &route.Table
	r := TableReport{Table: tableName(want)}
	table, err := s.table(ctx, want)
	if err != nil {
		return r, nil, err
	}
	where, err := s.place(ctx, want)
	if err != nil {
		return r, nil, err
	}
	if table == nil {
		r.Create = true
		if where.schema == "" {
			return r, nil, &TableError{r.Table, "search_path (" + where.searchPath + ") names no schema that exists and that the role may use: name one in TABLE, or mend search_path"}
		}
		r.Table = where.schema + "." + want.Name
		r.Warnings = where.warnings(want, where.schema)
		if err := nameable(want); err != nil {
			return r, nil, err
		}
		return r, nil, where.mayCreate(r.Table)
	}
	r.Table = table.schema + "." + table.name
	r.Warnings = append(table.warnings(route), where.warnings(want, table.schema)...)
	if r.Add, err = table.missing(want); err != nil {
		return r, table, err
	}
	if len(r.Add) > 0 && !table.owned {
		names := make([]string, len(r.Add))
		for i, c := range r.Add {
			names[i] = c.Name + " " + c.Type
		}
		return r, table, &TableError{r.Table, "lacks " + strings.Join(names, ", ") + ", and only its owner can add columns: add them, or alter table " +
			table.identifier().Sanitize() + " owner to " + where.quotedRole()}
	}
	return r, table, nil
}

// place is where a table that does not exist would be made.
type place struct {
	schema     string // empty: search_path leads nowhere
	exists     bool   // the schema does
	creatable  bool   // the role may create what is missing there: the table, or else the schema
	role       string
	database   string
	ownSchema  string
	searchPath string
}

func lookUpPlace(ctx context.Context, db querier, want *mapping.Table, ownSchema string) (place, error) {
	p := place{schema: want.Schema, ownSchema: ownSchema}
	var current, named, path string
	var ownExists bool
	err := db.QueryRow(ctx, `select coalesce(current_schema()::text, ''), current_user::text, current_database()::text, current_setting('search_path'),
		exists (select from pg_catalog.pg_namespace where nspname = $1)`, ownSchema).Scan(&current, &p.role, &p.database, &path, &ownExists)
	if err != nil {
		return p, fmt.Errorf("look up where table %s is made: %w", tableName(want), err)
	}
	p.searchPath = path
	if p.schema == "" {
		p.schema = current
		if !ownExists {
			p.schema = firstSchema(path, p.role, ownSchema, current)
		}
	}
	err = db.QueryRow(ctx, `select coalesce((select nspname::text from pg_catalog.pg_namespace where nspname = $1), ''),
		coalesce((select has_schema_privilege(oid, 'create') from pg_catalog.pg_namespace where nspname = $1), has_database_privilege(current_database(), 'create'))`,
		p.schema).Scan(&named, &p.creatable)
	if err != nil {
		return p, fmt.Errorf("look up schema %s: %w", p.schema, err)
	}
	p.exists = named != ""
	return p, nil
}

// firstSchema is the first schema of a search path when coming is about to be made: coming itself if
// it stands before current, the first one that exists now.
func firstSchema(path, role, coming, current string) string {
	for element := range strings.SplitSeq(path, ",") {
		name := strings.TrimSpace(element)
		if quoted, ok := strings.CutPrefix(name, `"`); ok {
			name = strings.ReplaceAll(strings.TrimSuffix(quoted, `"`), `""`, `"`)
		}
		if name == "$user" {
			name = role
		}
		switch name {
		case coming:
			return coming
		case current:
			return current
		}
	}
	return current
}

func (p *place) quotedRole() string { return pgx.Identifier{p.role}.Sanitize() }

// mayCreate says what the role lacks to make a table here.
func (p *place) mayCreate(table string) error {
	role := p.quotedRole()
	switch {
	case p.creatable:
		return nil
	case p.exists:
		schema := pgx.Identifier{p.schema}.Sanitize()
		return &TableError{table, "does not exist, and the role may not create it in schema " + p.schema + ": grant usage, create on schema " + schema + " to " + role}
	}
	return &TableError{table, "neither the table nor schema " + p.schema + " exists, and the role may not create the schema: grant create on database " +
		pgx.Identifier{p.database}.Sanitize() + " to " + role}
}

// warnings tells of a table that is not where people look for it.
func (p *place) warnings(want *mapping.Table, schema string) []string {
	if want.Schema != "" || schema != p.ownSchema || schema != p.role {
		return nil
	}
	return []string{fmt.Sprintf("table %[1]s is in schema %[2]s, beside the bridge's own tables, because the role has the same name and search_path (%[3]s) begins with it: "+
		"TABLE=public.%[1]s or alter role %[4]s set search_path = public puts it elsewhere", want.Name, schema, p.searchPath, p.quotedRole())}
}
