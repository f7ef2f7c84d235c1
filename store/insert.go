package store

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unique"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/mqttpg/bridge/mapping"
)

// maxParams is what the protocol's 16-bit count allows in one statement.
const maxParams = 65535

// typeMap knows the array type of every built-in type. It is only read.
var typeMap = pgtype.NewMap()

// arrayOID returns the array type of a built-in type that unnest turns into one column again. Array
// types themselves have none: unnest would flatten arrays of arrays.
func arrayOID(oid uint32) (uint32, bool) {
	element, ok := typeMap.TypeForOID(oid)
	if !ok {
		return 0, false
	}
	if _, isArray := element.Codec.(*pgtype.ArrayCodec); isArray {
		return 0, false
	}
	array, ok := typeMap.TypeForName("_" + element.Name)
	if !ok {
		return 0, false
	}
	return array.OID, true
}

// plan is how the rows of one route are written to its table as the table is now.
type plan struct {
	table    string // for people
	route    *mapping.Route
	oids     []uint32 // of the columns
	arrays   []uint32 // of the arrays of them; nil: the rows go as values
	head     string   // insert into t (columns)
	conflict string   // on conflict clause; empty when the table has no such unique index
	unnest   string
	altered  string // null, or an error where a column's type is not the one that was looked at
	imprint  int64  // of all columns, see imprint
	alike    likeness
	copy     string // copy t (columns) from stdin; empty: the rows are inserted
	drops    bool   // a trigger before the insert may let rows vanish
	order           // of the rows
}

// likeness is the same for plans that say the same of the same table.
type likeness = unique.Handle[string]

// columnKind tells the type of a column a of pg_attribute, and its modifiers, in one number.
const columnKind = "a.atttypid::int8 * 4294967296 + a.atttypmod"

// imprint is an aggregate that tells all columns a of a table apart from what they may become: the sum of a hash of each
// name and type, of which 1 600, the most that a table has, do not overflow.
const imprint = "sum(hashtextextended(a.attname::text, " + columnKind + ") >> 12)"

// newPlan is asked after the table was looked at and found to suit.
func newPlan(route *mapping.Route, table *catalogTable) *plan {
	columns := route.Table.Columns
	p := &plan{table: tableName(&route.Table), route: route, imprint: table.imprint, order: orderOf(&route.Table)}
	var names, params, kinds []string
	for i, column := range columns {
		kind := table.columns[column.Name].kind
		names = append(names, pgx.Identifier{column.Name}.Sanitize())
		params = append(params, "$"+strconv.Itoa(i+1))
		kinds = append(kinds, "when "+literal(column.Name)+" then "+strconv.FormatInt(kind, 10))
		p.oids = append(p.oids, column.OID)
		if array, ok := arrayOID(column.OID); ok {
			p.arrays = append(p.arrays, array)
		}
	}
	if len(p.arrays) < len(columns) {
		p.arrays = nil
	}
	p.head = "insert into " + tableIdentifier(&route.Table).Sanitize() + " (" + strings.Join(names, ", ") + ") "
	p.unnest = "select * from unnest(" + strings.Join(params, ", ") + ")"
	if table.unique(route.Table.KeyColumns) {
		p.conflict = " on conflict (" + quoteAll(route.Table.KeyColumns) + ") do nothing"
	}
	// Where somebody alters the type of a column, an insert goes on and casts: 2.7 becomes 3. So each
	// looks at the types itself, once, when it has the lock that keeps them as they are until the commit.
	// A name of four parts is no relation's: the error has class 42.
	p.altered = "(select format('column.%I.was.altered', a.attname)::regclass from pg_catalog.pg_attribute a where a.attrelid = " +
		literal(tableIdentifier(&route.Table).Sanitize()) + "::regclass and a.attnum > 0 and " + columnKind +
		" <> case a.attname " + strings.Join(kinds, " ") + " end limit 1)"
	p.unnest += " where " + p.altered + " is null"
	if table.copyable(columns) {
		p.copy = "copy " + tableIdentifier(&route.Table).Sanitize() + " (" + strings.Join(names, ", ") + ") from stdin (format binary)"
		p.drops = table.triggers
	}
	p.alike = unique.Make(fmt.Sprint(p.copy, p.altered, p.conflict, p.oids))
	return p
}

// unaltered makes the statement that fails where a table that was copied to is not as it was looked at, after it has
// told altered the position of each of these plans: COPY reads what it gets as whatever type the column has, but has
// the lock that keeps it. Any column that was altered counts, those of others as well, for two hundred tables are asked for
// in one look of a millisecond: a look at each of their columns took four.
func unaltered(plans []*plan, altered func(position int)) *statement {
	var tables, imprints column
	for _, p := range plans {
		tables.add([]byte(tableIdentifier(&p.route.Table).Sanitize()))
		imprints.add(binary.BigEndian.AppendUint64(nil, uint64(p.imprint)))
	}
	return &statement{
		// A name of four parts is no relation's: the error has class 42.
		sql: `with altered as materialized (select k.n from unnest($1, $2) with ordinality k("table", imprint, n) where k.imprint is distinct from (` +
			`select ` + imprint + ` from pg_catalog.pg_attribute a where a.attrelid = k."table"::regclass and a.attnum > 0 and not a.attisdropped))` +
			` select n from altered union all select format('%s.tables.were.altered', count(*))::regclass::oid::int8 from altered having count(*) > 0`,
		params: [][]byte{tables.array(pgtype.TextOID), imprints.array(pgtype.Int8OID)},
		oids:   []uint32{pgtype.TextArrayOID, pgtype.Int8ArrayOID},
		read: func(values [][]byte) error {
			if len(values) == 1 && len(values[0]) == 8 {
				if n := binary.BigEndian.Uint64(values[0]); n >= 1 && n <= uint64(len(plans)) {
					altered(int(n) - 1)
					return nil
				}
			}
			return errors.New("look for altered columns: answer is no number of a table")
		},
	}
}

// literal quotes a string, whatever standard_conforming_strings says.
func literal(s string) string {
	quoted := "'" + strings.ReplaceAll(s, "'", "''") + "'"
	if strings.Contains(s, `\`) {
		quoted = " E" + strings.ReplaceAll(quoted, `\`, `\\`)
	}
	return quoted
}

// nothing makes the insert of no row at all: where it is refused, so is every row.
func (p *plan) nothing() *statement {
	params := make([]string, len(p.oids))
	for i := range params {
		params[i] = "$" + strconv.Itoa(i+1)
	}
	return &statement{
		sql:    p.head + "select " + strings.Join(params, ", ") + " where " + p.altered + " is not null" + p.conflict,
		params: make([][]byte, len(p.oids)), oids: p.oids,
	}
}

func quoteAll(names []string) string {
	quoted := make([]string, len(names))
	for i, name := range names {
		quoted[i] = pgx.Identifier{name}.Sanitize()
	}
	return strings.Join(quoted, ", ")
}

// unit is what one message gives one route: its rows are written all or none.
type unit struct {
	entry int // position in the batch
	rows  []mapping.Row
	time  int64 // of the first row
}

// rowRef is a row on its way into a statement. day and device are what its place in the order is mostly
// decided by.
type rowRef struct {
	row    *mapping.Row
	device uint64 // bytes of DeviceID; set by order.sort
	day    int32
	unit   int32
	place  int32 // in the order of receipt
}

const microsecondsPerDay = 24 * 60 * 60 * 1_000_000

func refer(row *mapping.Row, unit, place int) rowRef {
	day := row.Time / microsecondsPerDay
	if row.Time%microsecondsPerDay < 0 {
		day--
	}
	return rowRef{row: row, unit: int32(unit), place: int32(place), day: int32(day)}
}

// order is that in which rows are written to a table.
type order struct {
	timeless bool // the time is not in the key
}

func orderOf(t *mapping.Table) order { return order{timeless: !slices.Contains(t.KeyColumns, "time")} }

// sort puts rows in the order of their day and key, and says whether a key stands twice. Every writer of every
// replica does, so that two transactions that meet in the same keys wait for one another instead of deadlocking.
// The day is in front because COPY gathers rows by partition before it inserts them: with all rows of a partition
// side by side it keeps the order. Equal keys stay in the order of receipt: the first is inserted, the others are its
// duplicates. The place sees to that, faster than a stable sort would.
//
// The rows themselves are not looked at until those of a device stand together, mostly in order then: they are in
// memory far apart, and a device sends one time after the other.
func (o order) sort(rows []rowRef) (twice bool) {
	nameDevices(rows)
	slices.SortFunc(rows, func(a, b rowRef) int {
		if a.day != b.day && !o.timeless {
			return cmp.Compare(a.day, b.day)
		}
		if a.device != b.device {
			return cmp.Compare(a.device, b.device)
		}
		return cmp.Compare(a.place, b.place)
	})
	for len(rows) > 0 {
		of := rows // those of the first device, as far as it is told apart
		if n := slices.IndexFunc(rows, func(r rowRef) bool { return r.device != rows[0].device || r.day != rows[0].day && !o.timeless }); n > 0 {
			of = rows[:n]
		}
		again, sorted := o.inspect(of)
		if !sorted {
			slices.SortFunc(of, func(a, b rowRef) int {
				return cmp.Or(o.compareKeys(a.row, b.row), cmp.Compare(a.place, b.place))
			})
			again, _ = o.inspect(of)
		}
		twice, rows = twice || again, rows[len(of):]
	}
	return twice
}

// nameDevices sets what tells the devices of rows apart, in their order, if anything of eight bytes does: those
// behind what all have in common.
func nameDevices(rows []rowRef) {
	if len(rows) == 0 {
		return
	}
	common := rows[0].row.DeviceID
	for i := 1; i < len(rows) && common != ""; i++ {
		for id := rows[i].row.DeviceID; !strings.HasPrefix(id, common); {
			common = common[:len(common)-1]
		}
	}
	for i := range rows {
		var device [8]byte
		copy(device[:], rows[i].row.DeviceID[len(common):])
		rows[i].device = binary.BigEndian.Uint64(device[:])
	}
}

// inspect says whether rows are in the order of their keys, and whether a key stands twice in them if they are.
func (o order) inspect(rows []rowRef) (twice, sorted bool) {
	for i := 1; i < len(rows); i++ {
		c := o.compareKeys(rows[i-1].row, rows[i].row)
		if c > 0 {
			return false, false
		}
		twice = twice || c == 0
	}
	return twice, true
}

func (o order) compareKeys(a, b *mapping.Row) int {
	if c := strings.Compare(a.DeviceID, b.DeviceID); c != 0 {
		return c
	}
	if c := cmp.Compare(a.Time, b.Time); c != 0 && !o.timeless {
		return c
	}
	return bytes.Compare(a.MessageID[:], b.MessageID[:])
}

// insertion is the writing of some units of one route. Its memory is used again by the next.
type insertion struct {
	plan  *plan
	units []unit
	rows  []rowRef // in the order of their keys once the statements are made
	parts []*part

	sorted bool // the rows are, already
	twice  bool // a key stands twice in sorted rows

	ahead *group // the first of those that are written to the table, whose rows are in order together

	failing bool // the last attempt did not succeed

	// copying says that the rows go by COPY, which fails on a key that is there. That costs PostgreSQL
	// less than half, and a batch that was refused is inserted. After that, COPY is tried again when as many
	// batches in a row as patience says met no duplicate.
	copying  bool
	patience int
	clean    int

	// See arrange.
	leader  *insertion   // whose COPY has the rows as well; nil: none but its own
	others  []*insertion // whose rows its COPY has as well
	joint   []rowRef     // of all of them
	mixed   []rowRef     // memory for that, where it is not the group's
	guessed bool         // the COPY took less than all: of whom is not known

	// several says that a message has more than one row, so that the number of rows inserted does
	// not tell how many messages were written: the database is asked which ones they are.
	several  bool
	inserted map[rowKey]struct{}

	buffers [][]byte
	copy    part     // that of the COPY
	own     []rowRef // memory for rows that are not those of a group
}

// part is one statement of an insertion and the rows it carries.
type part struct {
	statement
	rows     []rowRef
	complete bool // the answer said that all rows were inserted, without naming them
}

type rowKey struct {
	device string
	time   int64
	id     [16]byte
}

func keyOf(row *mapping.Row) rowKey { return rowKey{row.DeviceID, row.Time, row.MessageID} }

// maxPatience bounds insertion.patience.
const maxPatience = 64

// prepare makes the statements for a group. The first attempt at them may be a COPY, which arrange completes.
func (in *insertion) prepare(p *plan, g *group) {
	in.begin(p, g.units)
	in.rows, in.sorted, in.twice, in.ahead = g.rows, g.sorted, g.twice, g
	if in.copies() {
		in.copying = true
		in.copy = part{rows: in.rows, statement: statement{sql: p.copy, columns: len(p.oids)}}
		in.parts = append(in.parts, &in.copy)
		return
	}
	in.insert()
}

// prepareInsert makes statements for units that do not fail over a duplicate.
func (in *insertion) prepareInsert(p *plan, units []unit) {
	in.begin(p, units)
	in.own = gather(in.own, units)
	in.rows, in.sorted, in.ahead = in.own, false, nil
	in.insert()
}

// gather refers to the rows of units, in memory that is there.
func gather(rows []rowRef, units []unit) []rowRef {
	rows = slices.Grow(rows[:0], len(units))
	for i := range units {
		for j := range units[i].rows {
			rows = append(rows, refer(&units[i].rows[j], i, len(rows)))
		}
	}
	return rows
}

// begin forgets what was made for other units.
func (in *insertion) begin(p *plan, units []unit) {
	in.plan, in.units = p, units
	in.parts = in.parts[:0]
	in.copying, in.several, in.inserted = false, false, nil
	in.leader, in.others, in.guessed = nil, in.others[:0], false
	for i := range units {
		in.several = in.several || len(units[i].rows) != 1
	}
}

// forget forgets what an attempt was told of its rows that was not committed.
func (in *insertion) forget() {
	in.inserted = nil
	for _, p := range in.parts {
		p.complete = false
	}
}

// letGo forgets the rows: they are committed, and the route's next ones may be long in coming. Memory of everyday size is kept.
func (in *insertion) letGo() {
	in.own, in.mixed = forget(in.own), forget(in.mixed)
	clear(in.parts[:cap(in.parts)])
	in.copy = part{}
	in.units, in.rows, in.joint, in.ahead, in.parts, in.inserted = nil, nil, nil, nil, in.parts[:0], nil
	for i, b := range in.buffers {
		if cap(b) > keepBuffer {
			in.buffers[i] = nil
		}
	}
}

// forget empties memory for rows, up to its end: an isolation leaves others behind those of its last part.
func forget(rows []rowRef) []rowRef {
	if cap(rows) > keepUnits {
		return nil
	}
	clear(rows[:cap(rows)])
	return rows[:0]
}

// copies says whether COPY is worth trying, and can be accounted for: of messages with several rows it
// is not known afterwards which rows a trigger let vanish.
func (in *insertion) copies() bool {
	return in.plan.copy != "" && in.clean >= in.patience && (!in.several || !in.plan.drops)
}

// refusedCopy notes that COPY failed over the rows.
func (in *insertion) refusedCopy() {
	in.patience, in.clean = min(2*in.patience+1, maxPatience), 0
}

// learn notes of a batch that was committed whether it met duplicates.
func (in *insertion) learn(duplicates bool) {
	switch {
	case in.copying:
		in.patience /= 2
	case duplicates:
		in.clean = 0
	default:
		in.clean++
	}
}

// sort puts the rows in order.
func (in *insertion) sort() {
	if !in.sorted {
		in.twice = in.plan.sort(in.rows)
		in.sorted = true
	}
}

// insert makes the statements that insert the rows.
func (in *insertion) insert() {
	p := in.plan
	in.sort()
	in.copying, in.parts = false, in.parts[:0]
	in.leader, in.others = nil, in.others[:0]
	if p.arrays != nil {
		for rows := in.rows; len(rows) > 0; {
			n, size := 0, 0
			for n < len(rows) && (n == 0 || size+len(rows[n].row.Fields) <= maxStatement) {
				size += len(rows[n].row.Fields)
				n++
			}
			if len(in.parts) > 0 {
				in.buffers = nil // those of the part before are still to be sent
			}
			in.add(rows[:n], p.unnest, in.arrayParams(rows[:n]), slices.Clone(p.arrays))
			rows = rows[n:]
		}
		return
	}
	// An array type cannot be unnested row by row (unnest flattens arrays of arrays): these rows go
	// as values, in as many statements as the greatest number of parameters asks for.
	columns := len(p.oids)
	for rows := range slices.Chunk(in.rows, max(1, (maxParams-1)/columns)) {
		params, oids := make([][]byte, 0, len(rows)*columns+1), make([]uint32, 0, len(rows)*columns+1)
		for _, ref := range rows {
			params = appendFields(params, ref.row.Fields)
			oids = append(oids, p.oids...)
		}
		in.add(rows, "select * from ("+valuesList(len(rows), columns)+") v where "+p.altered+" is null", params, oids)
	}
}

func (in *insertion) add(rows []rowRef, source string, params [][]byte, oids []uint32) {
	s := &part{rows: rows, statement: statement{
		sql: in.plan.head + source + in.plan.conflict, params: params, oids: oids,
	}}
	if in.several && in.plan.conflict != "" {
		// The keys travel back only when some were inserted and some were not; a single row of nulls
		// says that all were.
		n := "$" + strconv.Itoa(len(params)+1)
		s.sql = "with inserted as (" + s.sql + ` returning "device_id"::text as d, "time" as t, "message_id" as m) ` +
			"select d, t, m from inserted where (select count(*) from inserted) < " + n +
			" union all select null, null, null where (select count(*) from inserted) = " + n
		s.params = append(s.params, binary.BigEndian.AppendUint64(nil, uint64(len(rows))))
		s.oids = append(s.oids, pgtype.Int8OID)
		s.read = func(values [][]byte) error { return in.readKey(s, values) }
	}
	in.parts = append(in.parts, s)
}

func (in *insertion) readKey(s *part, values [][]byte) error {
	if len(values) == 3 && values[0] == nil {
		s.complete = true
		return nil
	}
	if len(values) != 3 || len(values[1]) != 8 || len(values[2]) != 16 {
		return fmt.Errorf("insert into %s: answer is no row key", in.plan.table)
	}
	if in.inserted == nil {
		in.inserted = map[rowKey]struct{}{}
	}
	in.inserted[rowKey{string(values[0]), int64(binary.BigEndian.Uint64(values[1])), [16]byte(values[2])}] = struct{}{}
	return nil
}

// unsure says that rows vanished in a COPY, nobody knows which, of messages with several rows or of routes that
// share it: the trigger is newer than the plan.
func (in *insertion) unsure() bool {
	return in.guessed || in.copying && in.several && in.plan.conflict != "" && in.parts[0].affected < int64(len(in.rows))
}

// result says how many rows were inserted, for how many messages at least one, and how many messages
// vanished: the table took their rows without an error and kept none, and they cannot be there already,
// for nothing is recognised there.
func (in *insertion) result() (rows, written, vanished uint64) {
	mayBeThere := in.plan.conflict != "" && in.plan.route.Keyed
	messages := uint64(len(in.units))
	if in.copying && !in.plan.drops {
		mayBeThere = false // it would have failed
	}
	if in.unsure() {
		return uint64(in.parts[0].affected), messages, 0
	}
	if !in.several {
		for _, s := range in.parts {
			rows += uint64(s.affected)
		}
		if !mayBeThere {
			vanished = messages - rows
		}
		return rows, rows, vanished
	}
	wrote := make([]bool, len(in.units))
	for _, s := range in.parts {
		if in.plan.conflict == "" {
			// Of a part of the rows it is not known which they are.
			rows += uint64(s.affected)
			for _, ref := range s.rows {
				wrote[ref.unit] = wrote[ref.unit] || s.affected > 0
			}
			continue
		}
		for i, ref := range s.rows {
			// Of equal keys the first was inserted, if any; they stand side by side.
			if i > 0 && in.plan.compareKeys(s.rows[i-1].row, ref.row) == 0 {
				continue
			}
			if _, inserted := in.inserted[keyOf(ref.row)]; inserted || s.complete || in.copying {
				rows++
				wrote[ref.unit] = true
			}
		}
	}
	for _, w := range wrote {
		if w {
			written++
		}
	}
	if !mayBeThere {
		vanished = messages - written
	}
	return rows, written, vanished
}

// arrayParams gathers each column of the rows into one array parameter. A field is already what an
// array element is, a length and the value, so that gathering is copying.
func (in *insertion) arrayParams(rows []rowRef) [][]byte {
	columns := len(in.plan.oids)
	if len(in.buffers) != columns {
		in.buffers = make([][]byte, columns)
	}
	for c, oid := range in.plan.oids {
		b := in.buffers[c][:0]
		if cap(b) > keepBuffer {
			b = nil
		}
		b = binary.BigEndian.AppendUint32(b, 1) // dimensions
		b = binary.BigEndian.AppendUint32(b, 0) // has nulls, set below
		b = binary.BigEndian.AppendUint32(b, oid)
		b = binary.BigEndian.AppendUint32(b, uint32(len(rows)))
		in.buffers[c] = binary.BigEndian.AppendUint32(b, 1) // lower bound
	}
	for _, ref := range rows {
		fields := ref.row.Fields
		for c := range columns {
			end := 4
			if n := int32(binary.BigEndian.Uint32(fields)); n >= 0 {
				end += int(n)
			} else {
				in.buffers[c][7] = 1
			}
			in.buffers[c] = append(in.buffers[c], fields[:end]...)
			fields = fields[end:]
		}
	}
	return slices.Clone(in.buffers)
}

// appendFields appends a row's fields as parameters of their own; nil is null.
func appendFields(params [][]byte, fields []byte) [][]byte {
	for len(fields) > 0 {
		n := int32(binary.BigEndian.Uint32(fields))
		fields = fields[4:]
		if n < 0 {
			params = append(params, nil)
			continue
		}
		params = append(params, fields[:n:n])
		fields = fields[n:]
	}
	return params
}

// valuesList writes values ($1, $2), ($3, $4), ...
func valuesList(rows, columns int) string {
	b := make([]byte, 0, rows*columns*8)
	b = append(b, "values "...)
	n := 0
	for r := range rows {
		if r > 0 {
			b = append(b, ',')
		}
		for c := range columns {
			if c == 0 {
				b = append(b, '(')
			} else {
				b = append(b, ',')
			}
			n++
			b = strconv.AppendInt(append(b, '$'), int64(n), 10)
		}
		b = append(b, ')')
	}
	return string(b)
}
