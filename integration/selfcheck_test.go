//go:build unix

package integration

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/mqttpg/bridge/integration/provider"
)

// selfCheck is the part of /health that says what the broker grants and is known for.
type selfCheck struct {
	Status   string   `json:"status"`
	Reasons  []string `json:"reasons"`
	Delivery struct {
		BrokerVersion       string  `json:"broker_version"`
		MessagesDropped     *uint64 `json:"messages_dropped"`
		MessagesDroppedSeen uint64  `json:"messages_dropped_seen"`
		LastDrop            *string `json:"last_drop"`
		Watch               struct {
			State    string `json:"state"`
			ClientID string `json:"client_id"`
		} `json:"watch"`
		Outage struct {
			ReceivedPerS *float64 `json:"received_per_s"`
			Seconds      *float64 `json:"seconds"`
			Text         string   `json:"text"`
		} `json:"outage"`
		Findings []struct {
			Severity string `json:"severity"`
			What     string `json:"what"`
		} `json:"findings"`
	} `json:"delivery"`
}

func askSelfCheck(t *testing.T, bridge *provider.Bridge) (c selfCheck) {
	t.Helper()
	must(t, bridge.Health(t.Context(), &c))
	return c
}

// TestBrokerDropsMessages: while the database is away the broker's queue runs over. Mosquitto tells its
// publishers nothing, so the bridge must tell everybody.
func TestBrokerDropsMessages(t *testing.T) {
	t.Parallel()
	s := &scene{
		broker: provider.StartBroker(t, provider.BrokerConfig{Conf: []string{"max_queued_messages 10", "sys_interval 1"}}),
		server: provider.StartDatabase(t, provider.DatabaseConfig{}),
	}
	s.database = s.server.Fresh(t)
	env := merge(streamRoutes, map[string]string{"BRIDGE_MQTT_RECEIVE_MAXIMUM": "10", "BRIDGE_BATCH_MAX_MESSAGES": "10", "BRIDGE_BROKER_QUEUE_LIMIT": "10"})
	bridge := s.start(t, env)
	var c selfCheck
	eventually(t, "the broker's version and count are read", func() (bool, string) {
		c = askSelfCheck(t, bridge)
		return c.Delivery.Watch.State == "reading" && c.Delivery.MessagesDropped != nil, fmt.Sprintf("%+v", c.Delivery)
	})
	version := c.Delivery.BrokerVersion
	if !strings.Contains(s.broker.Logs(t.Context()), version+" starting") {
		t.Errorf("the broker is no %s", version)
	}
	if c.Delivery.MessagesDroppedSeen != 0 || c.Delivery.LastDrop != nil || c.Status != "ok" {
		t.Errorf("before anything was dropped: %+v", c)
	}
	known := []string{"Mosquitto does not store shared subscriptions"}
	if version == "mosquitto version 2.0.11" {
		known = append(known, "Mosquitto before 2.0.12 forgets shared subscriptions", "Mosquitto before 2.0.13 sends more than the Receive Maximum", "Mosquitto before 2.0.15 may stop delivering")
	}
	told := ""
	for _, f := range c.Delivery.Findings {
		told += f.Severity + " " + f.What + "\n"
	}
	check := []string{"version: " + version, "queued in a database outage: 20 messages in all, 0.2 s at 100 messages/s"}
	code, stdout, stderr := provider.RunBridge(t, merge(env, map[string]string{"BRIDGE_MQTT_URLS": s.broker.URL(), "BRIDGE_DATABASE_URL": s.database}), nil, "check", "--connect")
	if code != 0 {
		t.Errorf("check: exit code %d\n%s", code, stderr)
	}
	for _, what := range known {
		if !strings.Contains(told, what) {
			t.Errorf("/health does not name %q:\n%s", what, told)
		}
		if !strings.Contains(bridge.Logs(), what) {
			t.Errorf("the log does not name %q", what)
		}
		check = append(check, what)
	}
	for _, want := range check {
		if !strings.Contains(stdout+stderr, want) {
			t.Errorf("check does not say %q:\n%s%s", want, stdout, stderr)
		}
	}

	devices := newPublisher(t, s.broker.URL(), "devices")
	devices.sendAll(t.Context(), t, newStreamLoad(30).messages[:9])
	waitSettled(t, bridge, map[string]int{"telemetry": 3})
	eventually(t, "the outage that the queue survives is told", func() (bool, string) {
		c = askSelfCheck(t, bridge)
		seconds := scrape(t, bridge).sum("bridge_outage_tolerance_seconds")
		return c.Delivery.Outage.Seconds != nil && *c.Delivery.Outage.Seconds > 0 && seconds > 0, fmt.Sprintf("%+v, gauge %v", c.Delivery.Outage, seconds)
	})
	rate := *c.Delivery.Outage.ReceivedPerS

	must(t, s.server.Stop(t.Context()))
	devices.sendAll(t.Context(), t, newStreamLoad(200).messages)
	eventually(t, "the drop is seen", func() (bool, string) {
		c = askSelfCheck(t, bridge)
		// 10 are in flight and 10 queued. (Versions that overrun the window take more.)
		return c.Delivery.MessagesDroppedSeen >= 100, fmt.Sprintf("%+v", c.Delivery)
	})
	if c.Delivery.LastDrop == nil || *c.Delivery.MessagesDropped != c.Delivery.MessagesDroppedSeen || !containsAll(strings.Join(c.Reasons, "\n"), "broker: threw messages away") {
		t.Errorf("/health says %+v", c)
	}
	if n := scrape(t, bridge).sum("bridge_broker_messages_dropped_total"); n < float64(c.Delivery.MessagesDroppedSeen) {
		t.Errorf("bridge_broker_messages_dropped_total %v", n)
	}
	if !containsAll(bridge.Logs(), `"level":"error"`, "the broker threw messages away") {
		t.Error("the log says nothing of it")
	}
	t.Logf("rate %.2f/s; in the outage: %s", rate, c.Delivery.Outage.Text)
	must(t, s.server.Start(t.Context()))
	waitReady(t, bridge)
	if c = askSelfCheck(t, bridge); c.Status != "degraded" {
		t.Errorf("after the outage the status is %s", c.Status)
	}
	terminate(t, bridge)
	if logs := s.broker.Logs(t.Context()); !strings.Contains(logs, "Received DISCONNECT from "+c.Delivery.Watch.ClientID+"\n") {
		t.Error("the connection that reads $SYS was not ended cleanly")
	}
}

// TestBrokerTellsNothing: an access list without $SYS, and a bridge that is told not to ask, are no
// failures. What is not known is called unknown.
func TestBrokerTellsNothing(t *testing.T) {
	t.Parallel()
	s := &scene{
		broker: provider.StartBroker(t, provider.BrokerConfig{
			Conf:  []string{"acl_file {dir}/acl", "sys_interval 1"},
			Files: map[string][]byte{"acl": []byte("topic readwrite stream/#\n")},
		}),
		database: provider.SharedDatabase(t).Fresh(t),
	}
	look := func(bridge *provider.Bridge, state string) selfCheck {
		t.Helper()
		var c selfCheck
		eventually(t, "the watch is "+state, func() (bool, string) {
			c = askSelfCheck(t, bridge)
			return c.Delivery.Watch.State == state, fmt.Sprintf("%+v", c.Delivery)
		})
		if d := c.Delivery; d.BrokerVersion != "unknown" || d.MessagesDropped != nil || d.LastDrop != nil || !strings.HasPrefix(d.Outage.Text, "unknown: ") {
			t.Errorf("/health says %+v", d)
		}
		if status, body := page(t, bridge, "/readyz"); status != http.StatusOK {
			t.Errorf("/readyz: %d %s", status, body)
		}
		m := scrape(t, bridge)
		for _, name := range []string{"bridge_broker_messages_dropped_total", "bridge_outage_tolerance_seconds"} {
			if _, there := m[name]; there {
				t.Errorf("there is a metric %s", name)
			}
		}
		return c
	}
	bridge := s.start(t, streamRoutes)
	c := look(bridge, "asking")
	if n := connects(t, s.broker, c.Delivery.Watch.ClientID); n != 1 {
		t.Errorf("%d connections of %s", n, c.Delivery.Watch.ClientID)
	}
	terminate(t, bridge)

	bridge = s.start(t, streamRoutes, map[string]string{"BRIDGE_MQTT_WATCH": "off"})
	if c := look(bridge, "off"); c.Delivery.Watch.ClientID != "" {
		t.Errorf("client id %s", c.Delivery.Watch.ClientID)
	}
	terminate(t, bridge)
	if n := strings.Count(s.broker.Logs(t.Context()), " as bridge-watch-"); n != 1 {
		t.Errorf("%d connections to read $SYS, of which one bridge was told to make none", n)
	}
}
