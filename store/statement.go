package store

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// statement is one statement of a pipeline. It is unnamed, so that it works behind any pooler.
type statement struct {
	sql    string
	params [][]byte
	oids   []uint32
	text   bool // parameters in text instead of binary format

	copied  []rowRef // the rows of a copy from stdin in binary format; nil: it is none
	columns int      // of them

	read     func(values [][]byte) error // for every row of the answer; nil: none is expected
	affected int64                       // set by run: rows inserted
}

var (
	binaryFormat = []int16{1}
	textFormat   = []int16{0}
)

// run sends all statements and a Sync and reads the answers: one round trip. Outside a transaction
// block they are one transaction, which the Sync commits. When it fails, failed is the position of the
// statement that did; len(statements) means the commit itself or the connection. The connection can be
// used again if the server has answered, and is closed if not.
//
// The pipeline of pgconn knows no COPY, so that the messages are written here. The rows of a COPY
// follow its Execute at once: if the server refuses it, it passes over everything up to the Sync.
func run(ctx context.Context, conn *pgconn.PgConn, statements []*statement) (failed int, err error) {
	if ctx.Err() != nil {
		return len(statements), context.Cause(ctx)
	}
	socket := conn.Conn()
	interrupt := func() { _ = socket.SetDeadline(time.Unix(1, 0)) }
	stop := context.AfterFunc(ctx, interrupt)
	// Beside the reading, for a server whose own answers are not taken stops to read at some time.
	sent := make(chan error, 1)
	go func() {
		err := send(socket, statements)
		if err != nil && ctx.Err() == nil {
			_ = socket.SetReadDeadline(time.Now().Add(lastWords))
		}
		sent <- err
	}()
	failed, answered, err := receive(conn, statements) //nolint:contextcheck // interrupt ends it with ctx
	if !answered {
		interrupt()
	}
	sendErr := <-sent
	if !stop() || !answered {
		discard(conn) //nolint:contextcheck // ctx may have ended, and must not hold it up
	}
	switch pgErr := (*pgconn.PgError)(nil); {
	case err == nil || errors.As(err, &pgErr):
	case ctx.Err() != nil:
		err = fmt.Errorf("wait for database: %w", context.Cause(ctx))
	case sendErr != nil && !answered:
		err = fmt.Errorf("send to database: %w", sendErr)
	}
	return failed, err
}

// lastWords is for how long what the server said before it closed the connection is read.
const lastWords = time.Second

// discard closes a connection on which an answer is missing, and has the server cancel what it is at.
func discard(conn *pgconn.PgConn) {
	_ = conn.Conn().SetDeadline(time.Unix(1, 0))
	_ = conn.StartPipeline(context.Background()).Sync() // fails, and pgconn does all that is to be done then
}

// receive reads the answers up to that to the Sync. Not answered: that did not come.
func receive(conn *pgconn.PgConn, statements []*statement) (failed int, answered bool, err error) {
	failed, at := len(statements), 0
	for {
		message, broken := conn.ReceiveMessage(context.Background())
		if broken != nil {
			if pgErr := (*pgconn.PgError)(nil); err == nil && errors.As(broken, &pgErr) {
				failed = at // the server's last words
			}
			if err == nil {
				err = broken
			}
			return failed, false, err
		}
		switch m := message.(type) {
		case *pgproto3.ErrorResponse:
			if err == nil {
				failed, err = at, pgconn.ErrorResponseToPgError(m)
			}
		case *pgproto3.DataRow:
			if at < len(statements) && statements[at].read != nil && err == nil {
				err = statements[at].read(m.Values)
			}
		case *pgproto3.CommandComplete:
			if at < len(statements) {
				statements[at].affected = pgconn.NewCommandTag(string(m.CommandTag)).RowsAffected()
			}
			at++
		case *pgproto3.EmptyQueryResponse:
			at++
		case *pgproto3.ReadyForQuery:
			if err == nil && at != len(statements) {
				err = fmt.Errorf("%d answers to %d statements", at, len(statements))
			}
			return failed, true, err
		}
	}
}

const (
	// pieceSize is about how much is written to the socket at a time, and how long the messages of a COPY
	// are at most, but for a row that is longer.
	pieceSize = 64 << 10
	// keepBuffer is the size up to which a buffer is kept for the next batch; a single message of
	// many megabytes must not occupy its memory for ever.
	keepBuffer = 1 << 20
)

// pieces are buffers of sender.
var pieces = sync.Pool{New: func() any { return new(make([]byte, 0, pieceSize+pieceSize/4)) }}

// send writes the messages of the statements and a Sync.
func send(socket net.Conn, statements []*statement) error {
	piece := pieces.Get().(*[]byte)
	b, err := (*piece)[:0], error(nil)
	flush := func(limit int) {
		if len(b) > limit && err == nil {
			_, err = socket.Write(b)
			b = b[:0]
		}
	}
	for _, s := range statements {
		b, err = s.request(b)
		if err != nil {
			break
		}
		flush(pieceSize)
		if s.copied != nil {
			b = append(b, copyHeader...)
			for rows := s.copied; len(rows) > 0 && err == nil; flush(pieceSize) {
				rows, b = appendCopyData(b, rows, s.columns)
			}
			b = append(b, copyEnd...)
		}
	}
	b = append(b, 'S', 0, 0, 0, 4)
	flush(0)
	if cap(b) <= keepBuffer {
		*piece = b
		pieces.Put(piece)
	}
	return err
}

// request appends Parse, Bind and Execute of the unnamed statement.
func (s *statement) request(b []byte) ([]byte, error) {
	format := binaryFormat
	if s.text {
		format = textFormat
	}
	b, err := (&pgproto3.Parse{Query: s.sql, ParameterOIDs: s.oids}).Encode(b)
	if err != nil {
		return b, fmt.Errorf("encode statement: %w", err)
	}
	b, err = (&pgproto3.Bind{ParameterFormatCodes: format, Parameters: s.params, ResultFormatCodes: binaryFormat}).Encode(b)
	if err != nil {
		return b, fmt.Errorf("encode parameters: %w", err)
	}
	return (&pgproto3.Execute{}).Encode(b)
}

var (
	// copyHeader is a CopyData with the signature of the binary format, no flags and no extension.
	copyHeader = []byte("d\x00\x00\x00\x17PGCOPY\n\xff\r\n\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	// copyEnd is a CopyData with the trailer, and CopyDone.
	copyEnd = []byte("d\x00\x00\x00\x06\xff\xffc\x00\x00\x00\x04")
)

// appendCopyData appends a CopyData with the first of the rows, and returns the others. A row is a count
// of fields, and the fields as they are.
func appendCopyData(b []byte, rows []rowRef, columns int) ([]rowRef, []byte) {
	start := len(b)
	b = append(b, 'd', 0, 0, 0, 0)
	for len(rows) > 0 && (len(b) == start+5 || len(b)+len(rows[0].row.Fields) < pieceSize) {
		b = binary.BigEndian.AppendUint16(b, uint16(columns))
		b = append(b, rows[0].row.Fields...)
		rows = rows[1:]
	}
	binary.BigEndian.PutUint32(b[start+1:], uint32(len(b)-start-1))
	return rows, b
}
