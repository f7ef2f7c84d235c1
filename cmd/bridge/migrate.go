package main

import (
	"context"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/mqttpg/bridge/migrations"
	"github.com/mqttpg/bridge/store"
)

// migrateCommand applies the migrations, or lists them. With --tables it makes the routes' tables, too.
func migrateCommand(ctx context.Context, args []string, std streams) error {
	flags := newFlags("migrate")
	tables := flags.Bool("tables", false, "also make the tables of the routes, their missing columns and the partitions for the days to come, and drop those that retention lets go")
	word, err := parse(flags, args, std, "status")
	if err != nil {
		return err
	}
	if word == "status" && *tables {
		return usageError{"migrate: --tables makes tables, status changes nothing"}
	}
	return withDatabase(ctx, func(cfg *config, conn *pgx.Conn) error {
		if word == "status" {
			return listMigrations(ctx, conn, cfg.Schema.value, std)
		}
		if err := checkEncoding(conn); err != nil {
			return err
		}
		applied := map[int]bool{}
		for {
			err = migrations.Apply(ctx, conn, cfg.Schema.value, func(m migrations.Migration) {
				applied[m.Version] = true
				fmt.Fprintf(std.out, "applying %d %s\n", m.Version, m.Name)
			})
			if !migrations.Locked(err) {
				break
			}
			fmt.Fprintf(std.err, "another session holds a table that is to be changed (a backup, perhaps), trying again in %s: %v\n", lockedPause, err)
			select {
			case <-ctx.Done():
				return err
			case <-time.After(lockedPause):
			}
		}
		if err != nil {
			return err
		}
		fmt.Fprintf(std.out, "schema %s: %d applied, up to date\n", cfg.Schema.value, len(applied))
		if *tables {
			return cfg.makeTables(ctx, std)
		}
		return nil
	})
}

// lockedPause is between attempts at a migration that somebody's lock forbids.
const lockedPause = 3 * time.Second

// makeTables does as the owner of the tables what a bridge whose role may create nothing cannot do for
// itself. Called again and again, it makes partitions ahead and drops those beyond retention.
func (cfg *config) makeTables(ctx context.Context, std streams) error {
	pool, err := pgxpool.NewWithConfig(ctx, cfg.pool)
	if err != nil {
		return fmt.Errorf("make the connection pool: %w", err)
	}
	defer pool.Close()
	tables := store.NewTables(pool, cfg.store(newLogger(cfg.Log, std.err)), cfg.routes)
	if err := tables.Ensure(ctx); err != nil {
		return fmt.Errorf("prepare tables: %w", err)
	}
	failing, warnings := tables.Failing(), tables.Warnings()
	for _, route := range cfg.routes.All() {
		for _, warning := range warnings[route.Name] {
			fmt.Fprintf(std.err, "warning: route %s: %s\n", route.Name, warning)
		}
		if reason := failing[route.Name]; reason != "" {
			fmt.Fprintf(std.err, "bridge: route %s: %s\n", route.Name, reason)
			err = errTold
			continue
		}
		fmt.Fprintf(std.out, "route %s: table %s fits\n", route.Name, tableName(&route.Table))
	}
	if unmaintained := tables.MaintainOnce(ctx); unmaintained != nil {
		return unmaintained
	}
	return err
}

func listMigrations(ctx context.Context, conn *pgx.Conn, schema string, std streams) error {
	all, err := migrations.List(ctx, conn, schema)
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(std.out, 0, 8, 2, ' ', 0)
	for _, m := range all {
		fmt.Fprintf(w, "%d\t%s\t%s\n", m.Version, migrationState(m), m.Name)
	}
	return w.Flush()
}

func migrationState(m migrations.Migration) string {
	if m.Applied {
		return "applied"
	}
	return "pending"
}

// withDatabase reads the configuration and calls do with a connection, which it closes.
func withDatabase(ctx context.Context, do func(cfg *config, conn *pgx.Conn) error) error {
	cfg, err := loadConfig()
	if err != nil {
		return err
	}
	conn, err := cfg.connect(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	return do(cfg, conn)
}

// connect opens one connection as the pool would.
func (cfg *config) connect(ctx context.Context) (*pgx.Conn, error) {
	c := cfg.pool.ConnConfig.Copy()
	if cfg.pool.BeforeConnect != nil {
		if err := cfg.pool.BeforeConnect(ctx, c); err != nil {
			return nil, err
		}
	}
	conn, err := pgx.ConnectConfig(ctx, c)
	if err != nil {
		return nil, cfg.connectError(err)
	}
	return conn, nil
}

// connectError says so when nobody has said which database is meant: the driver then goes by the PG* variables and by defaults
// that lead to a database of the caller's name.
func (cfg *config) connectError(err error) error {
	err = store.Plain(err)
	if cfg.Database.URL.text == "" && cfg.Database.URLFile.text == "" {
		return fmt.Errorf("connect to the database (BRIDGE_DATABASE_URL is not set): %w", err)
	}
	return fmt.Errorf("connect to the database: %w", err)
}
