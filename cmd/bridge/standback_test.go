package main

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// beside starts a replica that is to stand back beside the one that is ready, and waits until it says why.
func beside(t *testing.T, reason string) *running {
	t.Helper()
	r := start(t)
	eventually(t, "the second replica stands back", func() (bool, string) {
		code, body := r.get("/readyz")
		return code == http.StatusServiceUnavailable && strings.Contains(body, "stands back, for other replicas do the work: "+reason), body
	})
	if report := r.health(); len(report.Broker) != 0 || !strings.HasPrefix(report.Process.StandsBack, reason) {
		t.Errorf("it has %d sessions, %+v", len(report.Broker), report.Process)
	}
	return r
}

func sessionsOf(r *running) string {
	var ids []string
	for _, s := range r.health().Broker {
		ids = append(ids, s.ClientID+" "+s.State)
	}
	return strings.Join(ids, ", ")
}

// TestStandsBackWithoutBroker is a release with a wrong address beside one that is well. It takes no session, and tries
// in earnest when it is the only one.
func TestStandsBackWithoutBroker(t *testing.T) {
	b, url := startBroker(t), database(t)
	settings := slices.Concat(telemetry, []string{"BRIDGE_DATABASE_URL=" + url, "BRIDGE_HTTP_ADDR=127.0.0.1:0", "BRIDGE_MQTT_SESSIONS=2"})
	environment(t, append(settings, "BRIDGE_MQTT_URLS="+b.url)...)
	good := start(t)
	good.awaitReady()
	const both = "bridge-0 subscribed, bridge-1 subscribed"
	eventually(t, "it has both sessions", func() (bool, string) { s := sessionsOf(good); return s == both, s })

	environment(t, append(settings, "BRIDGE_MQTT_URLS=mqtt://127.0.0.1:1")...)
	bad := beside(t, "broker: mqtt://127.0.0.1:1: ")
	if s := sessionsOf(good); s != both {
		t.Errorf("the good replica has %s", s)
	}
	if code := good.end(); code != exitOK {
		t.Errorf("exit code %d", code)
	}
	eventually(t, "the other one tries", func() (bool, string) {
		s := sessionsOf(bad)
		return strings.Contains(s, "bridge-0 ") && strings.Contains(s, "bridge-1 "), s
	})
	bad.end()
}

// TestTakesItsShare: a replica that could do the work does not stand back for long, with and without a trial.
func TestTakesItsShare(t *testing.T) {
	for _, trial := range []string{"on", "off"} {
		t.Run(trial, func(t *testing.T) {
			b, url := startBroker(t), database(t)
			environment(t, slices.Concat(telemetry, []string{
				"BRIDGE_DATABASE_URL=" + url, "BRIDGE_HTTP_ADDR=127.0.0.1:0", "BRIDGE_MQTT_SESSIONS=2", "BRIDGE_MQTT_URLS=" + b.url, "BRIDGE_MQTT_TRIAL=" + trial,
			})...)
			replicas := []*running{start(t)}
			replicas[0].awaitReady()
			replicas = append(replicas, start(t))
			eventually(t, "each has a session", func() (bool, string) {
				s := sessionsOf(replicas[0]) + " | " + sessionsOf(replicas[1])
				return strings.Count(s, "subscribed") == 2 && len(replicas[1].health().Broker) == 1, s
			})
			visited := false
			for id := range b.server.Clients.GetAll() {
				visited = visited || strings.HasPrefix(id, "bridge-check-")
			}
			if visited {
				t.Error("the trial has left a client with the broker")
			}
			for _, r := range replicas {
				if code := r.end(); code != exitOK {
					t.Errorf("exit code %d", code)
				}
			}
		})
	}
}

// TestStandsBackWithoutTables is a release with another column, whose role may make none.
func TestStandsBackWithoutTables(t *testing.T) {
	b, url := startBroker(t), database(t)
	settings := slices.Concat(telemetry, []string{"BRIDGE_DATABASE_URL=" + url, "BRIDGE_HTTP_ADDR=127.0.0.1:0", "BRIDGE_MQTT_URLS=" + b.url})
	environment(t, settings...)
	old := start(t)
	old.awaitReady()
	query(t, url, `create role writer login`)
	query(t, url, `grant usage on schema bridge, public to writer`)
	query(t, url, `grant select, insert, update, delete on all tables in schema bridge to writer`)
	query(t, url, `grant select, insert on all tables in schema public to writer`)

	environment(t, append(settings, "BRIDGE_MIGRATE=off", "BRIDGE_DATABASE_URL="+strings.Replace(url, "user=postgres", "user=writer", 1),
		"BRIDGE_ROUTE_TELEMETRY_COLUMNS=n:int4=$.n, extra:text=$.extra")...)
	fresh := beside(t, "route telemetry: ")
	query(t, url, `alter table telemetry add extra text`)
	fresh.awaitReady()
	if code := old.end(); code != exitOK {
		t.Errorf("exit code %d", code)
	}
	b.publish(t, "devices/a/telemetry", fmt.Sprintf(`{"ts":%d,"n":1,"extra":"more"}`, 1_800_000_000_000), 1)
	eventually(t, "the new column is written", func() (bool, string) {
		got := query(t, url, `select extra from telemetry`)
		return got == "more", got
	})
	if code := fresh.end(); code != exitOK {
		t.Errorf("exit code %d", code)
	}
}
