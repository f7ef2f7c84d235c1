//go:build unix

package integration

import (
	"fmt"
	"testing"
)

// TestFiltersChange starts a bridge again and again with other topic filters on the same session of
// the broker. What is not wanted any more must not be delivered beside what is.
func TestFiltersChange(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	device := newPublisher(t, s.broker.URL(), "device")
	want, number := rows{}, 0
	for _, step := range []map[string]string{
		{"BRIDGE_ROUTE_ALL_TOPIC": "home/+/temp"},
		{"BRIDGE_ROUTE_ALL_TOPIC": "home/#"},
		{"BRIDGE_ROUTE_ALL_TOPIC": "home/#", "BRIDGE_MQTT_MODE": "exclusive"},
		{"BRIDGE_ROUTE_ALL_TOPIC": "home/+/temp"},
	} {
		bridge := s.start(t, map[string]string{
			"BRIDGE_ROUTES": "all", "BRIDGE_ROUTE_ALL_FORMAT": "text", "BRIDGE_ROUTE_ALL_COLUMNS": "n:int8=payload", "BRIDGE_ROUTE_ALL_KEY": "delivery",
		}, step)
		eventually(t, "the broker's session has no other subscription", func() (bool, string) {
			got := tableRows(t, s.database, `select cardinality(subscriptions) from bridge.sessions`)
			return got["1"] == 1, fmt.Sprint(got)
		})
		var messages []message
		for range 50 {
			number++
			messages = append(messages, message{qos: 1, topic: "home/kitchen/temp", payload: fmt.Append(nil, number)})
			want.add(number)
		}
		device.sendAll(t.Context(), t, messages)
		eventually(t, "the messages are written", func() (bool, string) {
			got := tableRows(t, s.database, `select n from "all"`)
			return len(got) == number, fmt.Sprintf("%d of %d", len(got), number)
		})
		waitQuiet(t, bridge)
		terminate(t, bridge)
	}
	sameRows(t, "all", want, tableRows(t, s.database, `select n from "all"`))
	sameRows(t, "dead_letters", rows{}, tableRows(t, s.database, `select topic, reason from bridge.dead_letters`))
}

// TestFewerSessions lowers BRIDGE_MQTT_SESSIONS while the broker has messages queued for the sessions
// that go. They are drained and ended, and nothing is delivered to them any more.
func TestFewerSessions(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	device := newPublisher(t, s.broker.URL(), "device")
	bridge := s.start(t, streamRoutes, map[string]string{"BRIDGE_MQTT_SESSIONS": "3"})
	eventually(t, "the bridge owns all sessions", func() (bool, string) {
		owned := sessionsOwned(t, bridge)
		return owned == 3, fmt.Sprintf("%v", owned)
	})
	waitReady(t, bridge)
	load := newStreamLoad(9000)
	device.sendAll(t.Context(), t, load.messages[:3000])
	terminate(t, bridge)
	device.sendAll(t.Context(), t, load.messages[3000:6000]) // two thirds of it for sessions that go

	bridge = s.start(t, streamRoutes, map[string]string{"BRIDGE_MQTT_SESSIONS": "1"})
	eventually(t, "two sessions are retired", func() (bool, string) {
		got := tableRows(t, s.database, `select count(*) from bridge.sessions where retired_at is not null and owner is null and index > 0`)
		return got["2"] == 1, fmt.Sprint(got)
	})
	device.sendAll(t.Context(), t, load.messages[6000:])
	load.waitAndCompare(t, s, true, bridge)
	if owned := sessionsOwned(t, bridge); owned != 1 {
		t.Errorf("the bridge owns %v sessions", owned)
	}
}
