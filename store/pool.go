package store

import (
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// connectTimeout bounds one connection attempt where neither the connection string nor PGCONNECT_TIMEOUT
// says otherwise, so that a host that swallows packets does not use up an attempt.
const connectTimeout = 10 * time.Second

// PoolConfig is what the store asks of its connections, and connects nothing. connString is a URL or keywords
// and values; what it leaves out comes from the PG* variables of the environment. Statements are unnamed, so
// that the pool works behind a pooler in transaction mode, and the style of dates is ISO, whatever the
// database or the role says: what the server writes in text is read in no other. The error is the driver's, about
// connString.
func PoolConfig(connString string) (*pgxpool.Config, error) {
	cfg, err := pgxpool.ParseConfig(connString)
	if err != nil {
		return nil, err //nolint:wrapcheck // the caller knows which variable it was, and what of it is no secret
	}
	cfg.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec
	if cfg.ConnConfig.ConnectTimeout == 0 {
		cfg.ConnConfig.ConnectTimeout = connectTimeout
	}
	if cfg.ConnConfig.RuntimeParams["application_name"] == "" {
		cfg.ConnConfig.RuntimeParams["application_name"] = "bridge"
	}
	cfg.ConnConfig.RuntimeParams["datestyle"] = "ISO"
	return cfg, nil
}
