//go:build unix

package integration

import (
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"
)

// denyInserts makes a table refuse rows as one whose INSERT privilege was revoked does.
var denyInserts = []string{
	`create function deny() returns trigger language plpgsql as $$
		begin raise exception 'permission denied for table telemetry' using errcode = '42501'; end $$`,
	`create trigger deny before insert on telemetry for each row execute function deny()`,
}

// TestTableMissingDoesNotStallOthers breaks the table of one route in mid-run. The other routes
// flow on, the broken route's messages wait in the dead letters, and when the table is mended they are
// written by themselves.
func TestTableMissingDoesNotStallOthers(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	bridge := s.start(t, streamRoutes)
	watchLaw(t, bridge)
	devices := newPublisher(t, s.broker.URL(), "devices")
	base := time.Now().UTC().Truncate(time.Hour)
	load, broken := newStreamLoad(0), newStreamLoad(0)
	load.extend(base, 0, 300)
	broken.extend(base, 300, 600)
	devices.sendAll(t.Context(), t, load.messages)
	eventually(t, "the table is used", func() (bool, string) {
		got := tableRows(t, s.database, `select count(*) from telemetry`)
		return got["100"] == 1, fmt.Sprint(got)
	})

	execute(t, s.database, denyInserts...)
	devices.sendAll(t.Context(), t, broken.messages)
	eventually(t, "the other routes flow on", func() (bool, string) {
		got := tableRows(t, s.database, `select (select count(*) from orders), (select count(*) from raw)`)
		return got[line(200, 200)] == 1, fmt.Sprint(got)
	})
	eventually(t, "/health says that the route is failing", func() (bool, string) {
		_, body := page(t, bridge, "/health")
		return containsAll(body, "permission denied for table telemetry"), body
	})
	dead := rows{}
	for _, m := range broken.messages {
		if strings.HasSuffix(m.topic, "/telemetry") {
			dead.add("telemetry", m.topic, m.payload, "table_unusable")
		}
	}
	const deadLetters = `select route, topic, length(payload) || ':' || md5(payload), reason from bridge.dead_letters`
	eventually(t, "the broken route's messages wait as dead letters", func() (bool, string) {
		got := tableRows(t, s.database, deadLetters)
		return got.total() >= dead.total(), fmt.Sprintf("%d of %d", got.total(), dead.total())
	})
	sameRows(t, "dead_letters", dead, tableRows(t, s.database, deadLetters))

	execute(t, s.database, `drop trigger deny on telemetry`)
	eventually(t, "what was parked is written", func() (bool, string) {
		got := tableRows(t, s.database, `select count(*) from bridge.dead_letters where replayed_at is null`)
		return got["0"] == 1, fmt.Sprint(got)
	})
	load.extend(base, 600, 900)
	devices.sendAll(t.Context(), t, load.messages[300:])
	maps.Copy(load.telemetry, broken.telemetry)
	maps.Copy(load.orders, broken.orders)
	maps.Copy(load.raw, broken.raw)
	load.waitFor(t, s, bridge)
	load.compare(t, s, true)
	sameRows(t, "dead_letters", dead, tableRows(t, s.database, deadLetters))
	waitReady(t, bridge)
}
