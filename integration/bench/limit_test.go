//go:build linux

package bench

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// limitVariable holds the job of a child process that is a limit, as JSON.
const limitVariable = "BENCH_LIMIT"

// limit is a reader, a writer, or both in step.
type limit struct {
	Messages int `json:"messages"`

	Broker   string `json:"broker"` // host and port; empty: no reader
	ClientID string `json:"client_id"`
	Window   uint16 `json:"window"` // Receive Maximum

	Database  string `json:"database"` // empty: no writer
	Table     string `json:"table"`
	Tables    int    `json:"tables"` // 0: one. More: it is copied to table_0, table_1 and so on, by the number in the topic
	Rows      string `json:"rows"`   // file with as many rows as there are messages, as COPY writes them in binary
	Statement string `json:"statement"`
	Batch     int    `json:"batch"`
}

// limitReport is what it writes to stdout in the end.
type limitReport struct {
	Messages int       `json:"messages"`
	First    time.Time `json:"first"` // message
	Last     time.Time `json:"last"`  // acknowledgement that the broker has seen
}

// runLimit does its job and waits to be killed, so that its clock can be read.
func runLimit(text string) {
	report, err := func() (*limitReport, error) {
		var job limit
		if err := json.Unmarshal([]byte(text), &job); err != nil {
			return nil, err
		}
		return job.run(context.Background())
	}()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if err := json.NewEncoder(os.Stdout).Encode(report); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	time.Sleep(time.Hour)
}

// run returns when all messages are acknowledged and all rows are written.
func (l *limit) run(ctx context.Context) (*limitReport, error) {
	var batches []encodedBatch
	var db *pgx.Conn
	if l.Database != "" {
		var err error
		if db, err = pgx.Connect(ctx, l.Database); err != nil {
			return nil, err
		}
		defer func() { _ = db.Close(ctx) }()
		if batches, err = l.encode(ctx, db); err != nil {
			return nil, err
		}
	}
	ahead := 4 * l.Batch
	if l.Broker == "" {
		ahead = l.Messages
	}
	pace := newPace(ahead)
	report := &limitReport{Messages: l.Messages}
	read := make(chan error, 1)
	if l.Broker == "" {
		pace.came(l.Messages)
		read <- nil
	} else {
		conn, err := connectSubscriber(ctx, l.Broker, l.ClientID, mqtt5, l.Window)
		if err != nil {
			return nil, err
		}
		defer func() { _ = conn.Close() }()
		go func() {
			err := take(conn, l.Messages, min(int(l.Window)/2, 5000), func(n int) {
				if report.First.IsZero() {
					report.First = time.Now()
				}
				if db != nil {
					pace.came(n)
				}
			})
			report.Last = time.Now()
			if err != nil {
				pace.end()
			}
			read <- err
		}()
	}
	for i := range batches {
		if !pace.await(batches[i].rows) {
			return nil, <-read
		}
		if err := batches[i].send(ctx, db.PgConn()); err != nil {
			return nil, fmt.Errorf("write batch %d: %w", i, err)
		}
		pace.wrote(batches[i].rows)
	}
	return report, <-read
}

// pace keeps a reader and a writer in step.
type pace struct {
	mu    sync.Mutex
	moved sync.Cond
	ready int // messages that came and are not written
	most  int // from here on the reader waits
	over  bool
}

func newPace(most int) *pace {
	p := &pace{most: most}
	p.moved.L = &p.mu
	return p
}

// came adds messages, and returns when there is room for more.
func (p *pace) came(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ready += n
	p.moved.Broadcast()
	for p.ready > p.most && !p.over {
		p.moved.Wait()
	}
}

// await returns when so many messages have come; false: they never will.
func (p *pace) await(n int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.ready < n && !p.over {
		p.moved.Wait()
	}
	return p.ready >= n
}

// wrote takes messages away.
func (p *pace) wrote(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ready -= n
	p.moved.Broadcast()
}

// end says that no more come.
func (p *pace) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.over = true
	p.moved.Broadcast()
}

// encodedBatch is ready to be sent.
type encodedBatch struct {
	rows   int
	sql    string
	stream []byte   // of COPY
	wire   []byte   // of several, in one round trip
	params [][]byte // otherwise
	oids   []uint32
}

func (b *encodedBatch) send(ctx context.Context, conn *pgconn.PgConn) error {
	if b.wire != nil {
		return sendWire(conn, b.wire)
	}
	if b.stream != nil {
		_, err := conn.CopyFrom(ctx, bytes.NewReader(b.stream), b.sql)
		return err
	}
	_, err := conn.ExecParams(ctx, b.sql, b.params, b.oids, []int16{1}, []int16{1}).Close()
	return err
}

// sendWire sends messages that end with a Sync, and reads the answers. The pipeline of pgconn knows no COPY.
func sendWire(conn *pgconn.PgConn, wire []byte) error {
	sent := make(chan error, 1)
	go func() {
		_, err := conn.Conn().Write(wire)
		sent <- err
	}()
	var refused error
	for {
		message, err := conn.ReceiveMessage(context.Background())
		if err != nil {
			_ = conn.Conn().Close() // which ends the writing
			return errors.Join(err, <-sent)
		}
		switch m := message.(type) {
		case *pgproto3.ErrorResponse:
			refused = pgconn.ErrorResponseToPgError(m)
		case *pgproto3.ReadyForQuery:
			return errors.Join(refused, <-sent)
		}
	}
}

// tableColumn is a column of the table that is written.
type tableColumn struct {
	name       string
	oid, array uint32
	key        int // position in the primary key from 1 on, 0 outside
}

// encode reads the rows and makes batches of them.
func (l *limit) encode(ctx context.Context, db *pgx.Conn) ([]encodedBatch, error) {
	found, err := db.Query(ctx, `select a.attname::text, a.atttypid, t.typarray, coalesce(array_position(i.indkey::int2[], a.attnum) + 1, 0)::int
		from pg_attribute a join pg_type t on t.oid = a.atttypid left join pg_index i on i.indrelid = a.attrelid and i.indisprimary
		where a.attrelid = $1::regclass and a.attnum > 0 and not a.attisdropped order by a.attnum`, tablesOf(l.Table, l.Tables)[0])
	if err != nil {
		return nil, err
	}
	columns, err := pgx.CollectRows(found, func(row pgx.CollectableRow) (c tableColumn, err error) {
		return c, row.Scan(&c.name, &c.oid, &c.array, &c.key)
	})
	if err != nil {
		return nil, err
	}
	file, err := os.ReadFile(l.Rows)
	if err != nil {
		return nil, err
	}
	rows, err := splitRows(file, len(columns))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", l.Rows, err)
	}
	if len(rows) != l.Messages {
		return nil, fmt.Errorf("%s has %d rows, not %d", l.Rows, len(rows), l.Messages)
	}
	var batches []encodedBatch
	for chunk := range slices.Chunk(rows, l.Batch) {
		if l.Tables > 1 {
			batch, err := encodeCopies(l.Table, l.Tables, columns, chunk)
			if err != nil {
				return nil, err
			}
			batches = append(batches, batch)
			continue
		}
		sortRows(chunk, columns)
		switch l.Statement {
		case copyRows:
			batches = append(batches, encodeCopy(l.Table, columns, chunk))
		case unnestRows:
			batches = append(batches, encodeUnnest(l.Table, columns, chunk))
		default:
			return nil, fmt.Errorf("no statement is called %q", l.Statement)
		}
	}
	return batches, nil
}

// field is a value behind its length, as COPY and arrays have it.
type field []byte

const copyHeader = "PGCOPY\n\xff\r\n\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// splitRows takes the rows out of what COPY has written.
func splitRows(file []byte, columns int) (rows [][]field, err error) {
	rest, found := bytes.CutPrefix(file, []byte(copyHeader))
	if !found {
		return nil, errors.New("not written by COPY in binary")
	}
	for {
		if len(rest) < 2 {
			return nil, errors.New("it has no end")
		}
		n := int16(binary.BigEndian.Uint16(rest))
		if n == -1 {
			return rows, nil
		}
		if int(n) != columns {
			return nil, fmt.Errorf("a row of %d columns, not %d", n, columns)
		}
		rest = rest[2:]
		row := make([]field, columns)
		for i := range row {
			if len(rest) < 4 {
				return nil, errors.New("it ends within a row")
			}
			size := 4 + int(max(int32(binary.BigEndian.Uint32(rest)), 0)) // -1 is null
			if len(rest) < size {
				return nil, errors.New("it ends within a field")
			}
			row[i], rest = rest[:size:size], rest[size:]
		}
		rows = append(rows, row)
	}
}

// sortRows puts rows in the order of the primary key. Numbers after 2000 and texts in the order of their
// bytes are in the order of their encoding, once their lengths are left out.
func sortRows(rows [][]field, columns []tableColumn) {
	var key []int
	for position := 1; ; position++ {
		at := slices.IndexFunc(columns, func(c tableColumn) bool { return c.key == position })
		if at < 0 {
			break
		}
		key = append(key, at)
	}
	slices.SortStableFunc(rows, func(a, b []field) int {
		for _, at := range key {
			if order := bytes.Compare(a[at][4:], b[at][4:]); order != 0 {
				return order
			}
		}
		return 0
	})
}

func columnList(columns []tableColumn) string {
	names := make([]string, len(columns))
	for i, c := range columns {
		names[i] = pgx.Identifier{c.name}.Sanitize()
	}
	return strings.Join(names, ", ")
}

func encodeCopy(table string, columns []tableColumn, rows [][]field) encodedBatch {
	stream := []byte(copyHeader)
	for _, row := range rows {
		stream = binary.BigEndian.AppendUint16(stream, uint16(len(row)))
		for _, f := range row {
			stream = append(stream, f...)
		}
	}
	return encodedBatch{
		rows: len(rows), stream: append(stream, 0xff, 0xff),
		sql: "copy " + table + " (" + columnList(columns) + ") from stdin (format binary)",
	}
}

// tablesOf names the tables of a limit.
func tablesOf(table string, n int) []string {
	if n <= 1 {
		return []string{table}
	}
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("%s_%d", table, i)
	}
	return names
}

// encodeCopies makes one transaction of a COPY to each table that has rows among these. Topics begin with s and
// three digits, the number of the table.
func encodeCopies(table string, tables int, columns []tableColumn, rows [][]field) (encodedBatch, error) {
	topic := slices.IndexFunc(columns, func(c tableColumn) bool { return c.name == "topic" })
	of := make([][][]field, tables)
	for _, row := range rows {
		n, err := strconv.Atoi(string(row[topic][5:8])) // behind the length
		if err != nil || n >= tables {
			return encodedBatch{}, fmt.Errorf("topic %q belongs to none of %d tables", row[topic][4:], tables)
		}
		of[n] = append(of[n], row)
	}
	b := encodedBatch{rows: len(rows)}
	for i, name := range tablesOf(table, tables) {
		if len(of[i]) == 0 {
			continue
		}
		sortRows(of[i], columns)
		one := encodeCopy(name, columns, of[i])
		for _, message := range []pgproto3.FrontendMessage{
			&pgproto3.Parse{Query: one.sql}, &pgproto3.Bind{}, &pgproto3.Execute{}, &pgproto3.CopyData{Data: one.stream}, &pgproto3.CopyDone{},
		} {
			var err error
			if b.wire, err = message.Encode(b.wire); err != nil {
				return b, err
			}
		}
	}
	var err error
	b.wire, err = (&pgproto3.Sync{}).Encode(b.wire)
	return b, err
}

func encodeUnnest(table string, columns []tableColumn, rows [][]field) encodedBatch {
	b := encodedBatch{rows: len(rows)}
	params := make([]string, len(columns))
	for i, c := range columns {
		params[i] = "$" + strconv.Itoa(i+1)
		const dimensions, nulls, lower = 1, 1, 1 // that there may be nulls
		var array []byte
		for _, n := range []uint32{dimensions, nulls, c.oid, uint32(len(rows)), lower} {
			array = binary.BigEndian.AppendUint32(array, n)
		}
		for _, row := range rows {
			array = append(array, row[i]...)
		}
		b.params, b.oids = append(b.params, array), append(b.oids, c.array)
	}
	b.sql = "insert into " + table + " (" + columnList(columns) + ") select * from unnest(" + strings.Join(params, ", ") + ") on conflict do nothing"
	return b
}

func TestSplitRows(t *testing.T) {
	const one, null, empty = "\x00\x00\x00\x01a", "\xff\xff\xff\xff", "\x00\x00\x00\x00"
	for _, test := range []struct {
		name, file string
		want       []string // fields, one after the other; nil: it is refused
	}{
		{"none", copyHeader + "\xff\xff", []string{}},
		{"two", copyHeader + "\x00\x02" + one + null + "\x00\x02" + empty + one + "\xff\xff", []string{one, null, empty, one}},
		{"no header", "\xff\xff", nil},
		{"no end", copyHeader + "\x00\x02" + one + null, nil},
		{"a column too few", copyHeader + "\x00\x01" + one + "\xff\xff", nil},
		{"cut in a length", copyHeader + "\x00\x02" + one + "\x00\x00", nil},
		{"cut in a field", copyHeader + "\x00\x02" + one + "\x00\x00\x00\x09a", nil},
	} {
		rows, err := splitRows([]byte(test.file), 2)
		if (err == nil) != (test.want != nil) {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		got := []string{}
		for _, row := range rows {
			for _, f := range row {
				got = append(got, string(f))
			}
		}
		if test.want != nil && !slices.Equal(got, test.want) {
			t.Errorf("%s: got %q, want %q", test.name, got, test.want)
		}
	}
}

func TestRowsAreSortedByTheKey(t *testing.T) {
	text := func(s string) field { return append(binary.BigEndian.AppendUint32(nil, uint32(len(s))), s...) }
	rows := [][]field{{text("x"), text("b")}, {text("z"), text("aa")}, {text("y"), text("b")}, {text("w"), text("b")}}
	sortRows(rows, []tableColumn{{name: "second", key: 2}, {name: "first", key: 1}})
	got := ""
	for _, row := range rows {
		got += string(row[0][4:])
	}
	if got != "zwxy" {
		t.Errorf("order %s", got)
	}
}

func TestPace(t *testing.T) {
	p := newPace(10)
	p.came(10)
	if !p.await(10) {
		t.Error("what has come is not there")
	}
	came := make(chan struct{})
	go func() {
		p.came(5) // 15 are too many
		close(came)
	}()
	if !p.await(15) {
		t.Error("what has come is not there")
	}
	p.wrote(15)
	<-came
	p.end()
	if p.await(1) {
		t.Error("something came after the end")
	}
}
