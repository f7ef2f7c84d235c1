//go:build linux

package bench

import (
	"context"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mqttpg/bridge/integration/provider"
)

// System is one that takes messages from the broker of a stage and writes each as one row to its database.
type System struct {
	Name string

	// Limit says that it is a part of a system, which has no latency.
	Limit bool

	// Tables are where its rows arrive. Unless Progress is given they need a column id with the id of
	// the payload as uuid or text.
	Tables []string

	// Subscribe makes the session in which the broker gathers the backlog, and the tables, and leaves
	// both behind without a process. Nil: the system takes nothing from the broker, and there is no backlog.
	Subscribe func(t *testing.T, s *Stage)

	// Start starts the system and returns its processes, all of which count. It does not wait until
	// they are ready: a measurement begins with it. They end with t.
	Start func(t *testing.T, s *Stage) []int

	// Progress is for a system that tells itself how many messages it has dealt with, and when the first and
	// the last. Nil: the rows and their times of commit tell.
	Progress func() (messages int, first, last time.Time)
}

// bridgeOptions are how a bridge under test differs from the usual one.
type bridgeOptions struct {
	sessions int    // 0 is 1
	replicas int    // 0 is 1
	routes   int    // 0 is 1; each has a site of its own
	tables   bool   // and a table of its own
	table    string // "" is telemetry
	window   int    // BRIDGE_MQTT_RECEIVE_MAXIMUM, 0 is the default
	keyless  bool   // the delivery ledger alone tells a redelivery
}

// columns are the five of the usual payload.
const columns = "id:uuid=$.id, temperature:float8=$.temperature, humidity:float8=$.humidity, battery:float8=$.battery, status:text=$.status"

// bridge is the product: a keyed route, nothing kept but the columns, defaults otherwise.
func bridge(name string, o bridgeOptions) System {
	table, replicas, sessions := o.table, max(o.replicas, 1), max(o.sessions, 1)
	if table == "" {
		table = "telemetry"
	}
	env := map[string]string{"BRIDGE_MQTT_SESSIONS": strconv.Itoa(sessions)}
	if o.window > 0 {
		env["BRIDGE_MQTT_RECEIVE_MAXIMUM"] = strconv.Itoa(o.window)
	}
	if replicas > 1 {
		env["BRIDGE_MQTT_TRIAL"] = "off" // they share the sessions out while the broker is halted, see Start
	}
	var names, tables []string
	for i := range max(o.routes, 1) {
		route := fmt.Sprintf("r%d", i)
		names = append(names, route)
		prefix := "BRIDGE_ROUTE_" + strings.ToUpper(route) + "_"
		target := table
		if o.tables {
			target = fmt.Sprintf("%s_%d", table, i)
		}
		if len(tables) == 0 || o.tables {
			tables = append(tables, target)
		}
		maps.Copy(env, map[string]string{
			prefix + "TOPIC": fmt.Sprintf("s%03d/{device_id}/telemetry", i), prefix + "TABLE": target, prefix + "TIME": "$.ts",
			prefix + "COLUMNS": columns, prefix + "PAYLOAD": "drop",
		})
		if o.keyless {
			env[prefix+"KEY"] = "delivery"
		}
	}
	env["BRIDGE_ROUTES"] = strings.Join(names, ",")

	start := func(t *testing.T, s *Stage) *provider.Bridge {
		own := maps.Clone(env)
		own["BRIDGE_MQTT_URLS"], own["BRIDGE_DATABASE_URL"] = s.Broker.URL(), s.URL
		return provider.StartBridge(t, own)
	}
	return System{
		Name: name, Tables: tables,
		Subscribe: func(t *testing.T, s *Stage) {
			t.Helper()
			b := start(t, s)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			must(t, b.WaitReady(ctx))
			s.awaitOwners(t, 1, sessions)
			must(t, b.WaitReady(ctx))
			must(t, b.Term())
			if code, err := b.Wait(ctx); code != 0 || err != nil {
				t.Fatalf("the bridge ends with %d, %v", code, err)
			}
		},
		Start: func(t *testing.T, s *Stage) (pids []int) {
			t.Helper()
			if replicas > 1 {
				// With a broker that does not answer yet they can share the sessions out before the
				// first message comes.
				must(t, s.Broker.Pause(t.Context()))
				defer func() { must(t, s.Broker.Resume(t.Context())) }()
			}
			for range replicas {
				pids = append(pids, start(t, s).PID())
			}
			if replicas > 1 {
				s.awaitOwners(t, replicas, sessions)
			}
			return pids
		},
	}
}

// awaitOwners returns when so many bridges own all sessions, each about as many as the others.
func (s *Stage) awaitOwners(t *testing.T, replicas, sessions int) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		var owners, owned, least, most int
		must(t, s.db.QueryRow(t.Context(), `select count(*)::int, coalesce(sum(n), 0)::int, coalesce(min(n), 0)::int, coalesce(max(n), 0)::int
			from (select count(*) as n from bridge.sessions where owner is not null group by owner) as owned`).Scan(&owners, &owned, &least, &most))
		if owners == replicas && owned == sessions && most-least <= 1 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d bridges own %d of %d sessions, %d to %d of them each", owners, replicas, owned, sessions, least, most)
		}
	}
}
