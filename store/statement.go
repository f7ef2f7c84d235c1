package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"
)

// statement is one statement of a pipeline. It is unnamed, so that it works behind any pooler.
type statement struct {
	sql    string
	params [][]byte
	oids   []uint32
	text   bool // parameters in text instead of binary format

	read     func(values [][]byte) error // for every row of the answer; nil: none is expected
	affected int64                       // set by run: rows inserted
}

var (
	binaryFormat = []int16{1}
	textFormat   = []int16{0}
)

// run sends all statements and a Sync in one write and reads the answers: one round trip. Outside a
// transaction block they are one transaction, which the Sync commits. When it fails, failed is the
// position of the statement that did; len(statements) means the commit itself or the connection.
func run(ctx context.Context, conn *pgconn.PgConn, statements []*statement) (failed int, err error) {
	pipeline := conn.StartPipeline(ctx)
	for _, s := range statements {
		format := binaryFormat
		if s.text {
			format = textFormat
		}
		pipeline.SendQueryParams(s.sql, s.params, s.oids, format, binaryFormat)
	}
	if err := pipeline.Sync(); err != nil {
		_ = pipeline.Close() // reports the same error again
		return len(statements), fmt.Errorf("send to database: %w", err)
	}
	for i, s := range statements {
		if err := s.result(pipeline); err != nil {
			_ = pipeline.Close()
			if pgErr := (*pgconn.PgError)(nil); !errors.As(err, &pgErr) {
				i = len(statements) // the connection broke: no statement is to blame
			}
			return i, err
		}
	}
	if _, err := pipeline.GetResults(); err != nil {
		_ = pipeline.Close()
		return len(statements), fmt.Errorf("commit: %w", err)
	}
	if err := pipeline.Close(); err != nil {
		return len(statements), fmt.Errorf("end pipeline: %w", err)
	}
	return 0, nil
}

func (s *statement) result(pipeline *pgconn.Pipeline) error {
	results, err := pipeline.GetResults()
	if err != nil {
		return err
	}
	reader, ok := results.(*pgconn.ResultReader)
	if !ok {
		return fmt.Errorf("unexpected answer %T", results)
	}
	for reader.NextRow() {
		if s.read != nil {
			if err := s.read(reader.Values()); err != nil {
				return err
			}
		}
	}
	tag, err := reader.Close()
	s.affected = tag.RowsAffected()
	return err
}
