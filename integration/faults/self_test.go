//go:build unix

package faults

import (
	"context"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/mqttpg/bridge/integration/provider"
)

// TestMatrixCanFail spoils the database behind the bridge's back: without its ledger redeliveries
// become second rows, and a row that somebody deletes is missing. A matrix that does not see it
// would prove nothing.
func TestMatrixCanFail(t *testing.T) {
	spoilt := &scenario{
		name: "spoilt",
		trouble: func(s *stage) {
			for s.loading() {
				s.loseAnswerOfCommit()
				s.kill(s.bridges[0])
				s.dbLink.mend()
				s.expire()
				s.execute("delete from bridge.deliveries")
				s.revive(s.bridges[0])
			}
		},
		after: func(s *stage) {
			s.drain(0)
			s.execute("delete from several where v = 1 and n = (select min(n) from (select n from several group by n having count(*) = 3) as whole)", "delete from bridge.dead_letters where payload = '{\"poison\":0'")
		},
		patience: 1,
	}
	r := play(t, spoilt, 1, false, 2)
	if r.extra == 0 {
		t.Errorf("no row too many although the ledger was deleted: %s", r.account)
	}
	if r.keyedExtra != 0 {
		t.Errorf("%d rows too many in tables with a key, which need no ledger: %s", r.keyedExtra, r.account)
	}
	if r.missing != 2 {
		t.Errorf("%d missing, of which a row and a dead letter were deleted: %s", r.missing, r.account)
	}
}

// TestCompare gives every kind a wrong number of rows.
func TestCompare(t *testing.T) {
	l := &load{kinds: []*kind{
		{name: "good", route: map[string]string{}, rows: 1, count: "select * from (values (0, 1), (1, 1)) as v", sent: 3, acked: []bool{true, true, false}},
		{name: "perhaps", route: map[string]string{}, rows: 1, count: "select * from (values (0, 1)) as v", sent: 1, acked: []bool{false}},
		{name: "missing", route: map[string]string{}, rows: 1, count: "select * from (values (1, 1)) as v", sent: 2, acked: []bool{true, true}},
		{name: "twice", route: map[string]string{}, rows: 1, count: "select * from (values (0, 2)) as v", sent: 1, acked: []bool{true}, keyed: true},
		{name: "half", route: map[string]string{}, rows: 3, count: "select * from (values (0, 2)) as v", sent: 1, acked: []bool{false}},
		{name: "foreign", route: map[string]string{}, rows: 1, count: "select * from (values (7, 1)) as v"},
		{name: "twins", route: map[string]string{}, rows: 1, count: "select null::int, 5", sent: 3, acked: []bool{true, true, true}},
	}}
	db, err := pgx.Connect(t.Context(), provider.SharedDatabase(t).AdminURL())
	must(t, err)
	defer func() { _ = db.Close(context.WithoutCancel(t.Context())) }()
	a := l.compare(t, db)
	if a.published != 11 || a.acknowledged != 8 || a.rows != 14 || a.missing != 2 || a.extra != 4 || a.keyedExtra != 1 {
		t.Errorf("got %s, keyed %d", a, a.keyedExtra)
	}
	if rows, lacking := l.arrived(t, db, l.kinds); rows != 14 || lacking != 1 {
		t.Errorf("%d rows, %d lacking", rows, lacking)
	}
}

func TestLaw(t *testing.T) {
	for _, c := range []struct {
		what, metrics string
		holds         bool
	}{
		{"every outcome", `
bridge_messages_received_total{route="a"} 15
bridge_messages_written_total{route="a"} 1
bridge_messages_duplicate_total{route="a"} 2
bridge_messages_dead_lettered_total{route="a",reason="x"} 1
bridge_messages_dead_lettered_total{route="a",reason="y"} 2
bridge_messages_skipped_total{route="a",reason="x"} 4
bridge_messages_in_flight{route="a"} 5
`, true},
		{"one lost", `
bridge_messages_received_total{route="a"} 2
bridge_messages_written_total{route="a"} 1
`, false},
		{"one too many for one route, too few for the other", `
bridge_messages_received_total{route="a"} 1
bridge_messages_received_total{route="b"} 1
bridge_messages_written_total{route="a"} 2
bridge_messages_written_total{route="b"} 0
`, false},
	} {
		parser := expfmt.NewTextParser(model.LegacyValidation)
		families, err := parser.TextToMetricFamilies(strings.NewReader(c.metrics))
		must(t, err)
		for _, family := range families { // the parser takes what has no type for untyped
			for _, sample := range family.GetMetric() {
				sample.Gauge = &dto.Gauge{Value: sample.GetUntyped().Value}
			}
		}
		if _, _, broken := law(families); (broken == "") != c.holds {
			t.Errorf("%s: %q", c.what, broken)
		}
	}
}
