//go:build unix

package integration

import (
	"fmt"
	"testing"
)

// overlapRoutes are two routes whose filters overlap in part, and one with two such filters of its own.
// Nothing but the delivery tells their messages apart.
var overlapRoutes = map[string]string{
	"BRIDGE_ROUTES":            "x,b,own",
	"BRIDGE_ROUTE_X_TOPIC":     "site/+/x",
	"BRIDGE_ROUTE_X_FORMAT":    "text",
	"BRIDGE_ROUTE_X_COLUMNS":   "n:int8=payload",
	"BRIDGE_ROUTE_B_TOPIC":     "site/b/#",
	"BRIDGE_ROUTE_B_FORMAT":    "text",
	"BRIDGE_ROUTE_B_COLUMNS":   "n:int8=payload",
	"BRIDGE_ROUTE_OWN_TOPIC":   "own/+/x own/b/#",
	"BRIDGE_ROUTE_OWN_FORMAT":  "text",
	"BRIDGE_ROUTE_OWN_COLUMNS": "n:int8=payload",
}

// overlapLoad makes n messages for each kind of topic, and the rows they make.
type overlapLoad struct {
	number    int
	x, b, own rows
}

func (l *overlapLoad) messages(n int) []message {
	var list []message
	for range n {
		for _, topic := range []string{"site/b/x", "site/b/y", "site/c/x", "own/b/x", "own/b/y", "own/c/x"} {
			l.number++
			list = append(list, message{qos: 1, topic: topic, payload: fmt.Append(nil, l.number)})
			switch topic {
			case "site/b/x":
				l.x.add(topic, l.number)
				l.b.add(topic, l.number)
			case "site/c/x":
				l.x.add(topic, l.number)
			case "site/b/y":
				l.b.add(topic, l.number)
			default:
				l.own.add(topic, l.number)
			}
		}
	}
	return list
}

func (l *overlapLoad) wait(t *testing.T, s *scene) {
	t.Helper()
	want := line(len(l.x), len(l.b), len(l.own))
	eventually(t, "every message is in its tables", func() (bool, string) {
		got := tableRows(t, s.database, `select (select count(distinct n) from x), (select count(distinct n) from b), (select count(distinct n) from own)`)
		return got[want] == 1, fmt.Sprint(got, ", want ", want)
	})
}

// compare asks that every table has each message; those after number onceFrom exactly once, and the
// others at least once.
func (l *overlapLoad) compare(t *testing.T, s *scene, onceFrom int) {
	t.Helper()
	for name, want := range map[string]rows{"x": l.x, "b": l.b, "own": l.own} {
		got := tableRows(t, s.database, fmt.Sprintf(`select topic, n from %s where n > %d union all select distinct topic, n from %[1]s where n <= %[2]d`, name, onceFrom))
		sameRows(t, name, want, got)
	}
	sameRows(t, "dead_letters", rows{}, tableRows(t, s.database, `select topic, reason from bridge.dead_letters`))
}

// TestOverlappingRoutes: the broker delivers a message twice for filters that overlap in part, and every
// table has it once. It stays so over a restart, and a restart with other routes loses nothing of what is
// queued.
func TestOverlappingRoutes(t *testing.T) {
	t.Parallel()
	for mode, env := range map[string]map[string]string{
		"shared":    {"BRIDGE_MQTT_MODE": "shared", "BRIDGE_MQTT_SESSIONS": "2"},
		"exclusive": {"BRIDGE_MQTT_MODE": "exclusive"},
	} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			s := newScene(t)
			device := newPublisher(t, s.broker.URL(), "device")
			load := &overlapLoad{x: rows{}, b: rows{}, own: rows{}}
			bridge := s.start(t, overlapRoutes, env)
			watchLaw(t, bridge)
			device.sendAll(t.Context(), t, load.messages(300))
			load.wait(t, s)
			waitQuiet(t, bridge)
			load.compare(t, s, 0)
			m := scrape(t, bridge)
			for _, route := range []string{"x", "b", "own"} {
				if n := m.sum("bridge_messages_skipped_total", "route", route, "reason", "overlap"); n != 300 {
					t.Errorf("route %s has passed over %v copies", route, n)
				}
			}

			must(t, bridge.Kill(t.Context()))
			device.sendAll(t.Context(), t, load.messages(300))
			bridge = s.start(t, overlapRoutes, env)
			load.wait(t, s)
			waitQuiet(t, bridge)
			load.compare(t, s, 0)

			// Other routes: one overlaps the old ones and comes before them, one is gone.
			terminate(t, bridge)
			device.sendAll(t.Context(), t, load.messages(300))
			changed := merge(overlapRoutes, env, map[string]string{
				"BRIDGE_ROUTES": "x,b,own,plus", "BRIDGE_ROUTE_PLUS_TOPIC": "+/b/x/#", "BRIDGE_ROUTE_PLUS_FORMAT": "text", "BRIDGE_ROUTE_PLUS_COLUMNS": "n:int8=payload",
				"BRIDGE_ROUTE_B_TOPIC": "site/b/+",
			})
			bridge = s.start(t, changed)
			eventually(t, "the broker's sessions have no other subscriptions", func() (bool, string) {
				got := tableRows(t, s.database, `select cardinality(subscriptions) from bridge.sessions`)
				return got["5"] == got.total(), fmt.Sprint(got)
			})
			load.wait(t, s)
			waitQuiet(t, bridge)
			queued := load.number
			load.compare(t, s, queued)
			device.sendAll(t.Context(), t, load.messages(300))
			load.wait(t, s)
			waitQuiet(t, bridge)
			load.compare(t, s, queued)
			plus := fmt.Sprintf(`select count(distinct n), count(*) filter (where n > %d) from plus`, queued)
			sameRows(t, "plus", rows{line(1200, 600): 1}, tableRows(t, s.database, plus)) // two topics
		})
	}
}
