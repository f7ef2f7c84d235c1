package mapping

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// columnType is a type of PostgreSQL that a column may have.
type columnType struct {
	name             string // as the contract writes it: float8, text[], numeric(10,2)
	base             baseType
	array            bool
	limited          bool // varchar(length), numeric(precision, scale)
	length           int
	precision, scale int
}

type baseType uint8

const (
	typeBool baseType = iota
	typeInt2
	typeInt4
	typeInt8
	typeFloat4
	typeFloat8
	typeNumeric
	typeText
	typeVarchar
	typeDate
	typeTimestamp
	typeTimestamptz
	typeUUID
	typeInet
	typeJSON
	typeJSONB
	typeBytea
)

// baseTypes holds the names and the object ids of pg_type, which never change.
var baseTypes = [...]struct {
	name          string
	oid, arrayOID uint32
	aliases       []string
}{
	typeBool:        {name: "bool", oid: 16, arrayOID: 1000, aliases: []string{"boolean"}},
	typeInt2:        {name: "int2", oid: 21, arrayOID: 1005, aliases: []string{"smallint"}},
	typeInt4:        {name: "int4", oid: 23, arrayOID: 1007, aliases: []string{"integer", "int"}},
	typeInt8:        {name: "int8", oid: 20, arrayOID: 1016, aliases: []string{"bigint"}},
	typeFloat4:      {name: "float4", oid: 700, arrayOID: 1021, aliases: []string{"real"}},
	typeFloat8:      {name: "float8", oid: 701, arrayOID: 1022, aliases: []string{"double precision", "float"}},
	typeNumeric:     {name: "numeric", oid: 1700, arrayOID: 1231, aliases: []string{"decimal"}},
	typeText:        {name: "text", oid: 25, arrayOID: 1009},
	typeVarchar:     {name: "varchar", oid: 1043, arrayOID: 1015, aliases: []string{"character varying"}},
	typeDate:        {name: "date", oid: 1082, arrayOID: 1182},
	typeTimestamp:   {name: "timestamp", oid: 1114, arrayOID: 1115, aliases: []string{"timestamp without time zone"}},
	typeTimestamptz: {name: "timestamptz", oid: 1184, arrayOID: 1185, aliases: []string{"timestamp with time zone"}},
	typeUUID:        {name: "uuid", oid: 2950, arrayOID: 2951},
	typeInet:        {name: "inet", oid: 869, arrayOID: 1041},
	typeJSON:        {name: "json", oid: 114, arrayOID: 199},
	typeJSONB:       {name: "jsonb", oid: 3802, arrayOID: 3807},
	typeBytea:       {name: "bytea", oid: 17, arrayOID: 1001},
}

func (t *columnType) oid() uint32 {
	if t.array {
		return baseTypes[t.base].arrayOID
	}
	return baseTypes[t.base].oid
}

// element is the type of the elements of an array.
func (t *columnType) element() *columnType {
	e := *t
	e.array = false
	e.name = strings.TrimSuffix(e.name, "[]")
	return &e
}

// plain is a type without parameters.
func plain(base baseType) columnType {
	return columnType{name: baseTypes[base].name, base: base}
}

// parseType reads a type name of PostgreSQL, in any case, with its aliases.
func parseType(text string) (columnType, error) {
	name := strings.Join(strings.Fields(strings.ToLower(text)), " ")
	name, array := strings.CutSuffix(name, "[]")
	name, parameters, parenthesis := strings.Cut(strings.TrimSpace(name), "(")
	name = strings.TrimSpace(name)
	t, ok := lookUpType(name)
	if !ok {
		return t, fmt.Errorf("%q is no type the bridge can write; expected %s, or an array of one such as text[]", cut(text, 60), typeNames())
	}
	if parenthesis {
		parameters, closed := strings.CutSuffix(parameters, ")")
		if !closed || !t.parameters(strings.Split(parameters, ",")) {
			return t, fmt.Errorf("%q: expected %s", cut(text, 60), parameterForms(t.base))
		}
	}
	if t.array = array; array {
		t.name += "[]"
	}
	return t, nil
}

func lookUpType(name string) (columnType, bool) {
	for base, b := range baseTypes {
		if b.name == name || slices.Contains(b.aliases, name) {
			return plain(baseType(base)), true
		}
	}
	return columnType{}, false
}

func typeNames() string {
	var names []string
	for _, b := range baseTypes {
		names = append(names, b.name)
	}
	return strings.Join(names, ", ")
}

func parameterForms(base baseType) string {
	switch base {
	case typeVarchar:
		return "varchar(n) with n from 1 to 10485760"
	case typeNumeric:
		return "numeric(p) or numeric(p,s) with p from 1 to 1000 and s from 0 to p"
	}
	return baseTypes[base].name + " without parentheses"
}

// parameters sets what stands in parentheses and reports whether it is right.
func (t *columnType) parameters(list []string) bool {
	var numbers []int
	for _, text := range list {
		n, err := strconv.Atoi(strings.TrimSpace(text))
		if err != nil {
			return false
		}
		numbers = append(numbers, n)
	}
	t.limited = true
	switch {
	case t.base == typeVarchar && len(numbers) == 1:
		t.length = numbers[0]
		t.name = fmt.Sprintf("varchar(%d)", t.length)
		return t.length >= 1 && t.length <= 10485760
	case t.base == typeNumeric && len(numbers) <= 2:
		t.precision = numbers[0]
		if len(numbers) == 2 {
			t.scale = numbers[1]
		}
		t.name = fmt.Sprintf("numeric(%d,%d)", t.precision, t.scale)
		return t.precision >= 1 && t.precision <= 1000 && t.scale >= 0 && t.scale <= t.precision
	}
	return false
}
