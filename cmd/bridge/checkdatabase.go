package main

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/mqttpg/bridge/mapping"
	"github.com/mqttpg/bridge/migrations"
)

// databaseTimeout bounds all questions to the database together.
const databaseTimeout = 20 * time.Second

// checkDatabase looks at version, privileges, migrations and tables. It writes nothing.
func (cfg *config) checkDatabase(ctx context.Context) findings {
	var found findings
	ctx, cancel := context.WithTimeout(ctx, databaseTimeout)
	defer cancel()
	conn, err := cfg.connect(ctx)
	if err != nil {
		found.failf("%v", err)
		return found
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()

	var version, user, database string
	var readOnly, mayCreate bool
	err = conn.QueryRow(ctx, `select current_setting('server_version'), current_user::text, current_database()::text,
		current_setting('transaction_read_only') = 'on', has_database_privilege(current_database(), 'create')`).
		Scan(&version, &user, &database, &readOnly, &mayCreate)
	if err != nil {
		found.failf("ask for version and privileges: %v", err)
		return found
	}
	found.notef("PostgreSQL %s, database %s, user %s", version, database, user)
	if readOnly {
		found.failf("the server takes no writes: it is a standby, or default_transaction_read_only is on")
	}
	cfg.checkSchema(ctx, conn, mayCreate, &found)
	for _, route := range cfg.routes.All() {
		if err := checkTable(ctx, conn, route, &found); err != nil {
			found.failf("route %s: %v", route.Name, err)
		}
	}
	return found
}

// checkSchema looks at the bridge's own schema.
func (cfg *config) checkSchema(ctx context.Context, conn *pgx.Conn, mayCreate bool, found *findings) {
	schema := cfg.Schema.value
	all, err := migrations.List(ctx, conn, schema)
	if err != nil {
		found.failf("migrations: %v", err)
		return
	}
	pending := 0
	for _, m := range all {
		if !m.Applied {
			pending++
		}
	}
	var exists bool
	if err := conn.QueryRow(ctx, `select exists (select from pg_catalog.pg_namespace where nspname = $1)`, schema).Scan(&exists); err != nil {
		found.failf("schema %s: %v", schema, err)
		return
	}
	switch {
	case pending > 0 && !exists && !mayCreate:
		found.failf("schema %s does not exist and this user may not create it: grant create on database, or create the schema for it", schema)
	case pending > 0 && cfg.Migrate.value == "off":
		found.failf("migrations: %d of %d are pending and BRIDGE_MIGRATE is off: run bridge migrate", pending, len(all))
	default:
		found.notef("schema %s: %d migrations, %d pending", schema, len(all), pending)
	}
}

// checkTable compares a route's table with what is there.
func checkTable(ctx context.Context, conn *pgx.Conn, route *mapping.Route, found *findings) error {
	table := &route.Table
	identifier := pgx.Identifier{table.Name}
	if table.Schema != "" {
		identifier = pgx.Identifier{table.Schema, table.Name}
	}
	var oid *uint32
	if err := conn.QueryRow(ctx, `select to_regclass($1)::oid`, identifier.Sanitize()).Scan(&oid); err != nil {
		return fmt.Errorf("look for table %s: %w", tableName(table), err)
	}
	if oid == nil {
		found.notef("route %s: table %s does not exist yet and will be created", route.Name, tableName(table))
		return nil
	}
	rows, err := conn.Query(ctx, `select attname::text, atttypid::oid, format_type(atttypid, atttypmod) from pg_catalog.pg_attribute
		where attrelid = $1 and attnum > 0 and not attisdropped`, *oid)
	if err != nil {
		return fmt.Errorf("read columns of %s: %w", tableName(table), err)
	}
	type column struct {
		oid  uint32
		name string
	}
	have := map[string]column{}
	var name string
	var c column
	if _, err := pgx.ForEachRow(rows, []any{&name, &c.oid, &c.name}, func() error { have[name] = c; return nil }); err != nil {
		return fmt.Errorf("read columns of %s: %w", tableName(table), err)
	}
	fits := true
	for _, want := range table.Columns {
		switch is, there := have[want.Name]; {
		case !there:
			found.notef("route %s: column %s %s is missing in table %s and will be added", route.Name, want.Name, want.Type, tableName(table))
		case is.oid != want.OID:
			fits = false
			found.failf("route %s: column %s of table %s is %s, the route needs %s; the bridge alters no column", route.Name, want.Name, tableName(table), is.name, want.Type)
		}
	}
	var mayInsert bool
	if err := conn.QueryRow(ctx, `select has_table_privilege($1::oid, 'insert')`, *oid).Scan(&mayInsert); err != nil {
		return fmt.Errorf("ask for privileges on %s: %w", tableName(table), err)
	}
	if !mayInsert {
		fits = false
		found.failf("route %s: this user may not insert into table %s", route.Name, tableName(table))
	}
	if fits {
		found.notef("route %s: table %s fits", route.Name, tableName(table))
	}
	return nil
}
