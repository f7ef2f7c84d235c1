package main

import (
	"context"
	"fmt"
	"text/tabwriter"

	"github.com/jackc/pgx/v5"
	"github.com/mqttpg/bridge/migrations"
)

// migrateCommand applies the migrations, or lists them.
func migrateCommand(ctx context.Context, args []string, std streams) error {
	word, err := parse(newFlags("migrate"), args, std, "status")
	if err != nil {
		return err
	}
	cfg, err := loadConfig()
	if err != nil {
		return err
	}
	conn, err := cfg.connect(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if word == "status" {
		all, err := migrations.List(ctx, conn, cfg.Schema.value)
		if err != nil {
			return err
		}
		w := tabwriter.NewWriter(std.out, 0, 8, 2, ' ', 0)
		for _, m := range all {
			fmt.Fprintf(w, "%d\t%s\t%s\n", m.Version, migrationState(m), m.Name)
		}
		return w.Flush()
	}
	applied := 0
	err = migrations.Apply(ctx, conn, cfg.Schema.value, func(m migrations.Migration) {
		applied++
		fmt.Fprintf(std.out, "applying %d %s\n", m.Version, m.Name)
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(std.out, "schema %s: %d applied, up to date\n", cfg.Schema.value, applied)
	return nil
}

func migrationState(m migrations.Migration) string {
	if m.Applied {
		return "applied"
	}
	return "pending"
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
		return nil, fmt.Errorf("connect to the database: %w", err)
	}
	return conn, nil
}
