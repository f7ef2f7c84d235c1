package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/mqttpg/bridge/mapping"
	"github.com/mqttpg/bridge/migrations"
	"github.com/mqttpg/bridge/store"
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

	var version, user, database, searchPath string
	var readOnly, mayCreate bool
	err = conn.QueryRow(ctx, `select current_setting('server_version'), current_user::text, current_database()::text, current_setting('search_path'),
		current_setting('transaction_read_only') = 'on', has_database_privilege(current_database(), 'create')`).
		Scan(&version, &user, &database, &searchPath, &readOnly, &mayCreate)
	if err != nil {
		found.failf("ask for version and privileges: %v", err)
		return found
	}
	found.notef("PostgreSQL %s, database %s, user %s, search_path %s", version, database, user, searchPath)
	if readOnly {
		found.failf("the server takes no writes: it is a standby, or default_transaction_read_only is on")
	}
	if err := checkEncoding(conn); err != nil {
		found.failf("%v", err)
	}
	checkServerSettings(ctx, conn, &found)
	cfg.checkSchema(ctx, conn, user, database, mayCreate, &found)
	owners := map[string]*mapping.Route{} // by table: the first route that has it
	for _, route := range cfg.routes.All() {
		table := cfg.checkTable(ctx, conn, route, &found)
		if owners[table] == nil {
			owners[table] = route
		} else if warning := store.Alias(route, owners[table]); warning != "" {
			found.warnf("route %s: %s", route.Name, warning)
		}
	}
	return found
}

// checkEncoding refuses a database that takes the bridge's UTF-8 for something else and would store other
// characters. SQL_ASCII keeps the bytes as they are.
func checkEncoding(conn *pgx.Conn) error {
	switch encoding := conn.PgConn().ParameterStatus("server_encoding"); encoding {
	case "UTF8", "SQL_ASCII", "": // a pooler may not tell
		return nil
	default:
		return fmt.Errorf("the database has the encoding %s, and text is written as UTF-8: make one with encoding 'UTF8' template template0", encoding)
	}
}

// checkServerSettings warns of what the server, the database or the role sets for every connection. What
// the connection string sets has been told with the configuration.
func checkServerSettings(ctx context.Context, conn *pgx.Conn, found *findings) {
	rows, err := conn.Query(ctx, `select name, setting, source from pg_catalog.pg_settings where source not in ('default', 'client') order by name`)
	if err != nil {
		found.failf("settings: %v", err)
		return
	}
	var name, value, source string
	_, err = pgx.ForEachRow(rows, []any{&name, &value, &source}, func() error {
		if danger, fatal := dangerous(name, value); danger != "" && !fatal {
			found.warnf("%s is %s for this connection (from: %s): %s", name, value, source, danger)
		}
		return nil
	})
	if err != nil {
		found.failf("settings: %v", err)
	}
}

// checkSchema looks at the bridge's own schema.
func (cfg *config) checkSchema(ctx context.Context, conn *pgx.Conn, user, database string, mayCreate bool, found *findings) {
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
	var exists, mayUse bool
	if err := conn.QueryRow(ctx, `select count(*) > 0, coalesce(bool_and(has_schema_privilege(oid, 'create') and has_schema_privilege(oid, 'usage')), false)
		from pg_catalog.pg_namespace where nspname = $1`, schema).Scan(&exists, &mayUse); err != nil {
		found.failf("schema %s: %v", schema, err)
		return
	}
	switch {
	case pending > 0 && cfg.Migrate.value == "off":
		found.failf("migrations: %d of %d are pending and BRIDGE_MIGRATE is off: run bridge migrate, as a role that may create tables", pending, len(all))
	case pending > 0 && !exists && !mayCreate:
		found.failf("schema %s does not exist and this user may not create it: grant create on database %s to %s, or create schema %s authorization %[3]s",
			schema, pgx.Identifier{database}.Sanitize(), pgx.Identifier{user}.Sanitize(), schema)
	case pending > 0 && exists && !mayUse:
		found.failf("schema %s exists and this user may not create tables in it: grant usage, create on schema %[1]s to %s", schema, pgx.Identifier{user}.Sanitize())
	default:
		found.notef("schema %s: %d migrations, %d pending", schema, len(all), pending)
	}
	if pending == 0 {
		checkPrivileges(ctx, conn, schema, user, found)
		cfg.checkReplicas(ctx, conn, found)
	}
}

// checkPrivileges warns of what the role may not do with the bridge's own tables, most of which it does every second.
func checkPrivileges(ctx context.Context, conn *pgx.Conn, schema, user string, found *findings) {
	var lacks []string
	err := conn.QueryRow(ctx, `select coalesce(array_agg(what order by what), '{}') from (
			select p || ' on table ' || c.relname as what from pg_catalog.pg_class c, unnest(array['select', 'insert', 'update', 'delete']) p
			where c.relnamespace = $1::text::regnamespace and c.relkind in ('r', 'p') and c.relname <> 'schema_migrations' and not has_table_privilege(c.oid, p)
			union all
			select 'execute on function ' || f.proname from pg_catalog.pg_proc f
			where f.pronamespace = $1::text::regnamespace and not has_function_privilege(f.oid, 'execute')) missing`,
		pgx.Identifier{schema}.Sanitize()).Scan(&lacks)
	switch {
	case err != nil:
		found.failf("privileges in schema %s: %v", schema, err)
	case len(lacks) > 0:
		found.warnf("this user may not %s: grant select, insert, update, delete on all tables in schema %s to %s; grant execute on all functions in schema %[2]s to %[3]s",
			strings.Join(lacks, ", "), pgx.Identifier{schema}.Sanitize(), pgx.Identifier{user}.Sanitize())
	}
}

// checkReplicas warns of replicas that have nothing to do. How many are meant to run is the
// orchestrator's to know; how many do, the database tells.
func (cfg *config) checkReplicas(ctx context.Context, conn *pgx.Conn, found *findings) {
	running, err := store.CountReplicas(ctx, conn, cfg.Schema.value, cfg.MQTT.ShareName.value)
	sessions := cfg.MQTT.Sessions.value
	switch {
	case err != nil:
		found.failf("%v", err)
	case running > sessions && cfg.MQTT.Mode.value == "shared":
		found.warnf("%s running for %s, %d of them on standby: BRIDGE_MQTT_SESSIONS is the most that can work at a time",
			counted(running, "replica"), counted(sessions, "session"), running-sessions)
	case running > 0:
		found.notef("%s running, for %s", counted(running, "replica"), counted(sessions, "session"))
	}
}

// checkTable says what the service will find and do. It returns the table with its schema.
func (cfg *config) checkTable(ctx context.Context, conn *pgx.Conn, route *mapping.Route, found *findings) string {
	r, err := store.Verify(ctx, conn, cfg.Schema.value, route)
	for _, warning := range r.Warnings {
		found.warnf("route %s: %s", route.Name, warning)
	}
	elsewhere := cfg.Migrate.value == "off" // somebody else makes the tables, and their partitions
	if r.Foreign && !elsewhere {
		found.warnf("route %s: partitions are neither made nor dropped: table %s belongs to another role", route.Name, r.Table)
	}
	switch {
	case err != nil:
		found.failf("route %s: %v", route.Name, err)
	case r.Refused != nil && elsewhere && (r.Create || len(r.Add) > 0):
		found.failf("route %s: %v; or, as BRIDGE_MIGRATE is off, let bridge migrate --tables do it as the role that owns the tables", route.Name, r.Refused)
	case r.Refused != nil:
		found.failf("route %s: %v", route.Name, r.Refused)
	case r.Create:
		found.notef("route %s: table %s does not exist yet and will be created", route.Name, r.Table)
	default:
		for _, c := range r.Add {
			found.notef("route %s: column %s %s is missing in table %s and will be added", route.Name, c.Name, c.Type, r.Table)
		}
		found.notef("route %s: table %s fits", route.Name, r.Table)
	}
	return r.Table
}
