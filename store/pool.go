package store

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
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

// plainError is an error in other words.
type plainError struct {
	text string
	err  error
}

func (e *plainError) Error() string { return e.text }
func (e *plainError) Unwrap() error { return e.err }

// Plain is an error that tells of a failed connection what there is to do about. The driver tries each address with
// TLS and without, as sslmode=prefer asks, and joins what became of the attempts: the same twice, or that the server has no TLS
// before what it said then. What the server said, and which address could not be reached, is told once; the rest
// only where the server said nothing.
func Plain(err error) error {
	connect := (*pgconn.ConnectError)(nil)
	if !errors.As(err, &connect) {
		return err
	}
	attempts, ok := connect.Unwrap().(interface{ Unwrap() []error })
	if !ok {
		return err
	}
	all := attempts.Unwrap()
	answered := slices.ContainsFunc(all, isAnswer)
	var told []string
	for _, attempt := range all {
		dial := (*net.OpError)(nil)
		unreached := errors.As(attempt, &dial) && dial.Op == "dial"
		if text := attempt.Error(); (!answered || isAnswer(attempt) || unreached) && !slices.Contains(told, text) {
			told = append(told, text)
		}
	}
	text := fmt.Sprintf("failed to connect to `user=%s database=%s`: %s", connect.Config.User, connect.Config.Database, strings.Join(told, "; "))
	return &plainError{strings.ReplaceAll(err.Error(), connect.Error(), text), err}
}

// isAnswer says that a connection attempt got as far as an answer of the server.
func isAnswer(err error) bool {
	pgErr := (*pgconn.PgError)(nil)
	return errors.As(err, &pgErr)
}
