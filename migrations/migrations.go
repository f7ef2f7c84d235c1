// Package migrations brings the schema of the bridge's own tables up to date. The SQL files are
// embedded; jackc/tern runs them, each in a transaction of its own, under an advisory lock, so that
// any number of replicas may start together.
//
// Migrations only ever go forward, and every migration leaves the schema usable by the previous
// release: a binary accepts a database that is newer than itself, as it meets during a rolling update.
package migrations

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"regexp"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/tern/v2/migrate"
)

//go:embed *.sql
var files embed.FS

// Migration is one step of the schema.
type Migration struct {
	Version int    // from 1
	Name    string // of the SQL file; "unknown to this binary" for a step of a newer release
	Applied bool
}

// schemaName is what may stand for a schema: the migration library writes the name unquoted, so it
// must mean the same with and without quotes.
var schemaName = regexp.MustCompile(`^[a-z_][a-z0-9_]{0,62}$`)

// Latest is the version that this binary brings a database to.
func Latest() int {
	paths, err := migrate.FindMigrations(files)
	if err != nil {
		panic(fmt.Sprintf("embedded migrations: %v", err)) // the files are part of the binary: a test catches it
	}
	return len(paths)
}

// List returns all migrations in order and whether the database has them. It changes nothing and
// needs no privilege but to read the version table.
func List(ctx context.Context, conn *pgx.Conn, schema string) ([]Migration, error) {
	version, err := version(ctx, conn, schema)
	if err != nil {
		return nil, err
	}
	paths, err := migrate.FindMigrations(files)
	if err != nil {
		return nil, fmt.Errorf("find migrations: %w", err)
	}
	var all []Migration
	for i, path := range paths {
		all = append(all, Migration{Version: i + 1, Name: path, Applied: i < version})
	}
	for n := len(paths) + 1; n <= version; n++ {
		all = append(all, Migration{Version: n, Name: "unknown to this binary", Applied: true})
	}
	return all, nil
}

// Apply creates the schema if it is missing and runs the migrations that the database does not have.
// progress, which may be nil, is told of each before it runs. On a database that is up to date, or
// newer than this binary, nothing is written and no privilege to create anything is needed.
//
// A migration waits for the lock of a table for a second, because everybody who wants that table then waits behind it: a
// backup that reads the schema would otherwise stop all replicas for as long as it takes. See [Locked].
//
// The lock belongs to the database session: conn must not go through a pooler in transaction mode.
func Apply(ctx context.Context, conn *pgx.Conn, schema string, progress func(Migration)) error {
	current, err := version(ctx, conn, schema)
	if err != nil {
		return err
	}
	if current >= Latest() {
		return nil
	}
	if err := createSchema(ctx, conn, schema); err != nil {
		return err
	}
	migrator, err := migrate.NewMigrator(ctx, conn, schema+".schema_migrations")
	if err != nil {
		return fmt.Errorf("prepare %s.schema_migrations: %w", schema, err)
	}
	migrator.Data["schema"] = pgx.Identifier{schema}.Sanitize()
	if err := migrator.LoadMigrations(files); err != nil {
		return fmt.Errorf("load migrations: %w", err)
	}
	for _, m := range migrator.Migrations {
		m.UpSQL = "set local lock_timeout = '1s';\n" + m.UpSQL
	}
	migrator.OnStart = func(sequence int32, name, _, _ string) {
		if progress != nil {
			progress(Migration{Version: int(sequence), Name: name})
		}
	}
	err = migrator.Migrate(ctx)
	if bad := migrate.BadVersionError(""); errors.As(err, &bad) {
		// A newer release migrated between our look and our lock.
		if current, err := version(ctx, conn, schema); err == nil && current >= Latest() {
			return nil
		}
	}
	if err != nil {
		return fmt.Errorf("migrate schema %s: %w", schema, err)
	}
	return nil
}

// Locked says whether an error of [Apply] is that somebody holds a table that is to be changed. Nothing of that migration is
// done then, and it may be tried again after a pause, in which those who waited behind it have their turn.
func Locked(err error) bool {
	pgErr := (*pgconn.PgError)(nil)
	return errors.As(err, &pgErr) && pgErr.Code == "55P03"
}

// version is the database's; 0 when it has no version table yet.
func version(ctx context.Context, conn *pgx.Conn, schema string) (int, error) {
	if !schemaName.MatchString(schema) {
		return 0, fmt.Errorf("schema %q: want lower-case letters, digits and underscores, at most 63", schema)
	}
	var there bool
	err := conn.QueryRow(ctx,
		`select exists (select from pg_catalog.pg_tables where schemaname = $1 and tablename = 'schema_migrations')`, schema).Scan(&there)
	if err != nil {
		return 0, fmt.Errorf("look for %s.schema_migrations: %w", schema, err)
	}
	if !there {
		return 0, nil
	}
	var version int
	err = conn.QueryRow(ctx, `select version from `+pgx.Identifier{schema, "schema_migrations"}.Sanitize()).Scan(&version)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, nil // another replica has just made the table
	}
	if err != nil {
		return 0, fmt.Errorf("read %s.schema_migrations: %w%s", schema, err, grant(ctx, conn, schema, err))
	}
	return version, nil
}

// grant says what lets the role read the version table, if that is what an error is about.
func grant(ctx context.Context, conn *pgx.Conn, schema string, err error) string {
	pgErr := (*pgconn.PgError)(nil)
	if !errors.As(err, &pgErr) || pgErr.Code != "42501" {
		return ""
	}
	var role string
	if err := conn.QueryRow(ctx, `select current_user::text`).Scan(&role); err != nil {
		return "" // what was the matter before is told all the same
	}
	role, table := pgx.Identifier{role}.Sanitize(), pgx.Identifier{schema, "schema_migrations"}.Sanitize()
	return fmt.Sprintf(": grant usage on schema %s to %s; grant select on %s to %[2]s", pgx.Identifier{schema}.Sanitize(), role, table)
}

// createSchema creates the schema only when it is missing: "if not exists" alone asks for the CREATE
// privilege on the database before it looks.
func createSchema(ctx context.Context, conn *pgx.Conn, schema string) error {
	var there bool
	err := conn.QueryRow(ctx, `select exists (select from pg_catalog.pg_namespace where nspname = $1)`, schema).Scan(&there)
	if err != nil {
		return fmt.Errorf("look for schema %s: %w", schema, err)
	}
	if there {
		return nil
	}
	// Two sessions that create a schema at once meet in a unique index of the catalog in spite of
	// "if not exists", hence the lock.
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `select pg_advisory_xact_lock(hashtextextended('bridge create schema ' || $1, 0))`, schema); err != nil {
			return fmt.Errorf("lock the creation of schema %s: %w", schema, err)
		}
		if _, err := tx.Exec(ctx, `create schema if not exists `+pgx.Identifier{schema}.Sanitize()); err != nil {
			return fmt.Errorf("create schema %s: %w", schema, err)
		}
		return nil
	})
}
