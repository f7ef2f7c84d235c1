package store

import (
	"context"
	"errors"
	"net"

	"github.com/jackc/pgx/v5/pgconn"
)

// ErrFenced says that another process holds the session: the batch was refused, nothing of it was
// written, and nothing of it may be acknowledged.
var ErrFenced = errors.New("another process holds the session")

// verdict is what an error of the database means for the batch.
type verdict int

const (
	verdictRetry  verdict = iota // not the message's fault: hold the batch and try again
	verdictData                  // a value is at fault: find the message and make it a dead letter
	verdictRoute                 // the route's table is at fault: fail the route
	verdictFenced                // the lease is lost: stop
)

// classify decides what an error means. It is asked about every error; data and route verdicts hold
// only for the statement of a route, the caller retries everything else. When in doubt the answer is
// retry: it keeps every message, and the operator sees it.
func classify(err error) verdict {
	if table := (*TableError)(nil); errors.As(err, &table) {
		return verdictRoute // the table was looked at and does not suit the route
	}
	pgErr := (*pgconn.PgError)(nil)
	if !errors.As(err, &pgErr) {
		return verdictRetry // network, time-out, pool: says nothing about the batch
	}
	if connectErr := (*pgconn.ConnectError)(nil); errors.As(err, &connectErr) {
		return verdictRetry // refused at the door (28, 3D, 53300, 57P03): no statement ran
	}
	switch pgErr.Code {
	case "BR001":
		return verdictFenced // raised by the fence of migration 001
	case "57014":
		return verdictRoute // statement_timeout: a trigger of the table that takes too long, or somebody's cancel
	case "55P03":
		// With a context it waited for another transaction's row, in an index of the table: another
		// writer's, or our own lost attempt that the server has not given up yet. That ends by itself.
		if pgErr.Where != "" {
			return verdictRetry
		}
	case "XX001", "XX002":
		return verdictRoute // damaged table or index: no repetition helps, and the other tables are well
	}
	switch pgErr.Code[:min(2, len(pgErr.Code))] {
	case "P0", "09", "21", "27", "2F", "38", "39", "44":
		return verdictData // the operator's own trigger, function or check option refuses this row, or fails over it
	case "08", "0A", "HV":
		return verdictRoute // the table is a foreign one whose server is away, or a view that cannot be written
	case "22":
		return verdictData // data exception: out of range, too long, invalid text
	case "23":
		return verdictData // constraint of the operator's: check, not null, foreign key, another unique key
	case "54":
		return verdictData // program limit that the value exceeds: index row size, nesting depth, array size
	case "42":
		return verdictRoute // no such table or column, wrong type, permission denied
	case "3D", "3F":
		return verdictRoute // no such database (of a foreign table) or schema
	case "55":
		// The object is not in a state to be written: a view without rules, or a table locked for longer than
		// lock_timeout (vacuum full, a forgotten transaction). Waiting is right for a while, as with a
		// missing table, but one such table must not stop the others for ever.
		return verdictRoute
	case "28":
		return verdictRoute // a foreign server refuses us; our own refuses at connecting, see above
	}
	// 25 read-only after a failover, 40 deadlock or serialisation, 53 out of disk,
	// memory or connections, 57 shutdown, 58 input/output error,
	// XX internal error, and whatever a later server invents.
	return verdictRetry
}

// waited says that a statement was given up because it took too long, most likely for a lock: every
// repetition takes as long again.
func waited(err error) bool {
	pgErr := (*pgconn.PgError)(nil)
	return errors.As(err, &pgErr) && (pgErr.Code == "55P03" || pgErr.Code == "57014")
}

// ofServer says that the server gave up over a statement for reasons that are its own: no memory, or an
// internal error. It is worth waiting, but not for ever: the statement may ask for what the server never has.
func ofServer(err error) bool {
	pgErr := (*pgconn.PgError)(nil)
	return errors.As(err, &pgErr) && (pgErr.Code == "53200" || pgErr.Code == "XX000")
}

// tooMuch says that a value may be more than the server can bear: memory, time, or a limit of its own.
func tooMuch(err error) bool {
	pgErr := (*pgconn.PgError)(nil)
	return ofServer(err) || errors.As(err, &pgErr) && (pgErr.Code == "57014" || pgErr.Code[:min(2, len(pgErr.Code))] == "54")
}

// errorClass is the closed set of labels for retries: the SQLSTATE class, or what came instead.
func errorClass(err error) string {
	pgErr := (*pgconn.PgError)(nil)
	if errors.As(err, &pgErr) && len(pgErr.Code) == 5 {
		switch class := pgErr.Code[:2]; class {
		case "08", "22", "23", "25", "28", "3D", "3F", "40", "42", "53", "54", "55", "57", "58", "XX":
			return class
		}
		return "other"
	}
	if table := (*TableError)(nil); errors.As(err, &table) {
		return "table"
	}
	netErr := net.Error(nil)
	if errors.Is(err, context.DeadlineExceeded) || errors.As(err, &netErr) && netErr.Timeout() {
		return "timeout"
	}
	return "network"
}

// readOnly says that the server answers but is not the primary: connections to it are of no use.
func readOnly(err error) bool {
	pgErr := (*pgconn.PgError)(nil)
	return errors.As(err, &pgErr) && pgErr.Code == "25006"
}
