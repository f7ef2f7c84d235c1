package store

import (
	"context"

	"github.com/mqttpg/bridge/mapping"
)

// survey is a look at the tables of many routes: what is the same for several is read once. A table that
// was changed is read anew, see forget. One goroutine uses it, for a short time.
type survey struct {
	db         querier
	ownSchema  string
	tables     map[string]*catalogTable // by the name that routes give; nil: there is none
	places     map[string]place         // by schema
	partitions map[partitioning]error   // why those that are missing could not be made
	changed    bool                     // a table was, see forget
}

// partitioning is what a route wants of a table's partitions.
type partitioning struct {
	table string
	width mapping.Partition
}

func newSurvey(db querier, ownSchema string) *survey {
	return &survey{
		db: db, ownSchema: ownSchema,
		tables: map[string]*catalogTable{}, places: map[string]place{}, partitions: map[partitioning]error{},
	}
}

// table is inspect.
func (s *survey) table(ctx context.Context, want *mapping.Table) (*catalogTable, error) {
	if table, seen := s.tables[tableName(want)]; seen {
		return table, nil
	}
	table, err := inspect(ctx, s.db, want)
	if err == nil {
		s.tables[tableName(want)] = table
	}
	return table, err
}

// place is lookUpPlace.
func (s *survey) place(ctx context.Context, want *mapping.Table) (place, error) {
	if p, seen := s.places[want.Schema]; seen {
		return p, nil
	}
	p, err := lookUpPlace(ctx, s.db, want, s.ownSchema)
	if err == nil {
		s.places[want.Schema] = p
	}
	return p, err
}

// forget has everything that a change may have touched read anew.
func (s *survey) forget() {
	s.changed = true
	clear(s.tables)
	clear(s.places)
}
