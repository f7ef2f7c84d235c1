package ingest

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestCheckGrants reads as: what CONNACK and SUBACK hold, and what is found in it.
func TestCheckGrants(t *testing.T) {
	asked := Config{
		ShareName: "bridge", Filters: []string{"devices/+/telemetry", "alarms/#"}, QoS: 1,
		SessionExpiry: 24 * time.Hour, KeepAlive: 15 * time.Second,
		Behind: func(filter string) []string {
			if filter == "alarms/#" {
				return []string{"alarms", "audit"}
			}
			return []string{"telemetry"}
		},
	}
	const telemetry, alarms = "$share/bridge/devices/+/telemetry", "$share/bridge/alarms/#"
	all := Granted{
		SessionExpiry: 24 * time.Hour, ReceiveMaximum: 65535, MaximumQoS: 2,
		Retain: true, WildcardSubs: true, SharedSubs: true, SubscriptionIDs: true, KeepAlive: 15 * time.Second,
	}
	granted := []Subscription{{Filter: telemetry, ReasonCode: 1, OK: true}, {Filter: alarms, ReasonCode: 1, OK: true}}
	refused := func(code byte, text string) []Subscription {
		return []Subscription{granted[0], {Filter: alarms, ReasonCode: code, Text: text}}
	}
	tests := map[string]struct {
		asked   func(*Config)
		granted func(*Granted)
		subs    []Subscription
		want    []string // severity: what → consequence [remedy], begun
	}{
		"everything as asked": {subs: granted},
		"not answered yet":    {subs: []Subscription{{Filter: telemetry, Text: notAnswered}}},
		"Session Expiry Interval": {
			granted: func(g *Granted) { g.SessionExpiry = time.Hour },
			want:    []string{"warning: the broker keeps a session for 1h0m0s without a connection, 24h0m0s was asked for → when no bridge is connected for longer than that, everything"},
		},
		"Maximum QoS": {
			granted: func(g *Granted) { g.MaximumQoS = 0 },
			want:    []string{"warning: the broker takes messages with QoS 0 at most, QoS 1 was asked for → what arrives while the bridge or the database is away is lost"},
		},
		"Maximum QoS 1 where 2 was asked for": {
			asked:   func(c *Config) { c.QoS = 2 },
			granted: func(g *Granted) { g.MaximumQoS = 1 },
			want:    []string{"warning: the broker takes messages with QoS 1 at most, QoS 2 was asked for → the broker may deliver a message again; the delivery ledger recognises that"},
		},
		"Maximum QoS that suffices":                          {granted: func(g *Granted) { g.MaximumQoS = 1 }},
		"Receive Maximum is about what the bridge publishes": {granted: func(g *Granted) { g.ReceiveMaximum = 1 }},
		"Server Keep Alive, shorter": {
			granted: func(g *Granted) { g.KeepAlive = 5 * time.Second },
			want:    []string{"info: the broker sets the keep alive to 5s, 15s was asked for → each side notices sooner"},
		},
		"Server Keep Alive, longer": {
			granted: func(g *Granted) { g.KeepAlive = time.Minute },
			want:    []string{"info: the broker sets the keep alive to 1m0s, 15s was asked for → it takes longer"},
		},
		"Server Keep Alive 0": {
			granted: func(g *Granted) { g.KeepAlive = 0 },
			want:    []string{"warning: the broker sets the keep alive to 0s, 15s was asked for → a broker that has vanished without a word is never noticed"},
		},
		"Server Keep Alive where none was asked for": {
			asked: func(c *Config) { c.KeepAlive = 0 },
			want:  []string{"info: the broker sets the keep alive to 15s, 0s was asked for → each side notices sooner"},
		},
		"no shared subscriptions where plain ones were asked for": {
			asked:   func(c *Config) { c.ShareName = "" },
			granted: func(g *Granted) { g.SharedSubs = false },
		},
		"Shared Subscription Available 0": {
			granted: func(g *Granted) { g.SharedSubs = false },
			subs:    refused(codeSharedNotSupported, "the broker says in CONNACK: shared subscriptions not supported (0x9E)"),
			want:    []string{"error: subscription to " + alarms + ": the broker says in CONNACK: shared subscriptions not supported (0x9E) → route alarms, audit gets nothing through it [set BRIDGE_MQTT_MODE=exclusive"},
		},
		"Wildcard Subscription Available 0": {
			granted: func(g *Granted) { g.WildcardSubs = false },
			subs:    refused(codeWildcardNotSupport, "the broker says in CONNACK: wildcard subscriptions not supported (0xA2)"),
			want:    []string{"error: subscription to " + alarms + ": the broker says in CONNACK: wildcard subscriptions not supported (0xA2) → route alarms, audit gets nothing through it [name every topic"},
		},
		"no wildcards where none are used": {
			asked:   func(c *Config) { c.Filters = []string{"a/b"} },
			granted: func(g *Granted) { g.WildcardSubs = false },
		},
		"Subscription Identifier Available 0": {
			granted: func(g *Granted) { g.SubscriptionIDs = false },
			subs:    refused(codeSubIDsNotSupported, "the broker offers no Subscription Identifiers, and the filter overlaps devices/+/x: use one filter"),
			want:    []string{"error: subscription to " + alarms + ": the broker offers no Subscription Identifiers, and the filter overlaps devices/+/x: use one filter → route alarms, audit gets nothing through it []"},
		},
		"no subscription identifiers, which nobody needs": {granted: func(g *Granted) { g.SubscriptionIDs = false }, subs: granted},
		"Retain Available 0 with a status topic": {
			asked:   func(c *Config) { c.StatusTopic = "status" },
			granted: func(g *Granted) { g.Retain = false },
			want:    []string{"warning: the broker keeps no retained messages → it refuses the retained status"},
		},
		"Retain Available 0 with plain subscriptions": {
			asked:   func(c *Config) { c.ShareName = "" },
			granted: func(g *Granted) { g.Retain = false },
			want:    []string{"info: the broker keeps no retained messages → RETAINED=store has nothing to store"},
		},
		"Retain Available 0, which nobody needs": {granted: func(g *Granted) { g.Retain = false }},
		"granted a lower QoS": {
			subs: refused(0, "the broker granted QoS 0, QoS 1 was asked for"),
			want: []string{"error: subscription to " + alarms + ": the broker granted QoS 0, QoS 1 was asked for → what arrives while the bridge or the database is away is lost [allow QoS 1 at the broker"},
		},
		"refused": {
			subs: refused(0x87, "the broker refused: not authorized (0x87)"),
			want: []string{"error: subscription to " + alarms + ": the broker refused: not authorized (0x87) → route alarms, audit gets nothing through it [allow this filter"},
		},
		"refused, and nobody knows the routes": {
			asked: func(c *Config) { c.Behind = nil },
			subs:  refused(0x87, "the broker refused: not authorized (0x87)"),
			want:  []string{"error: subscription to " + alarms + ": the broker refused: not authorized (0x87) → nothing is received for it"},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			cfg, g := asked, all
			if test.asked != nil {
				test.asked(&cfg)
			}
			if test.granted != nil {
				test.granted(&g)
			}
			found := CheckGrants(&cfg, g, test.subs)
			if len(found) != len(test.want) {
				t.Fatalf("found %+v", found)
			}
			for i, f := range found {
				if got := fmt.Sprintf("%s: %s → %s [%s]", f.Severity, f.What, f.Consequence, f.Remedy); !strings.HasPrefix(got, test.want[i]) {
					t.Errorf("found %s\nwant  %s", got, test.want[i])
				}
			}
		})
	}
}

func TestCheckSoftware(t *testing.T) {
	const (
		forgets  = "Mosquitto before 2.0.12 forgets"
		overruns = "Mosquitto before 2.0.13 sends more"
		retained = "Mosquitto before 2.0.13 sends retained"
		takeover = "Mosquitto before 2.0.15 closes the older"
		expired  = "Mosquitto before 2.0.15 may stop"
		restored = "Mosquitto before 2.0.15 lets no"
		counts   = "Mosquitto before 2.0.4"
		vanishes = "Mosquitto before 2.0.16"
		drops    = "Mosquitto 2.0.16 drops"
		crashes  = "Mosquitto before 2.0.18"
		cuts     = "Mosquitto 2.0.17 to 2.0.21"
		listener = "Mosquitto 2.0.12 to 2.0.22"
		stores   = "Mosquitto does not store shared"
	)
	for _, test := range []struct {
		topic, text string
		plain       bool
		want        []string
	}{
		{text: "mosquitto version 2.0.0", want: []string{forgets, overruns, expired, counts, stores, retained, takeover, restored, vanishes, crashes}},
		{text: "mosquitto version 2.0.11", want: []string{forgets, overruns, expired, stores, retained, takeover, restored, vanishes, crashes}},
		{text: "mosquitto version 2.0.11", plain: true, want: []string{overruns, expired, takeover, restored, vanishes, crashes}},
		{text: "mosquitto version 2.0.12", want: []string{overruns, expired, stores, retained, takeover, restored, vanishes, crashes, listener}},
		{text: "mosquitto version 2.0.14", want: []string{expired, stores, takeover, restored, vanishes, crashes, listener}},
		{text: "mosquitto version 2.0.15", want: []string{stores, vanishes, crashes, listener}},
		{text: "mosquitto version 2.0.16", want: []string{drops, stores, crashes, listener}},
		{text: "mosquitto version 2.0.18", want: []string{stores, cuts, listener}},
		{text: "mosquitto version 2.0.22", want: []string{stores, listener}},
		{text: "mosquitto version 2.0.23", want: []string{stores}},
		{text: "mosquitto version 2.0.23", plain: true},
		{text: "mosquitto version 2.1.0-rc1", want: []string{stores}},
		{text: "mosquitto version 1.6.15", want: []string{"mosquitto version 1.6.15 is older", stores}},
		{text: "mosquitto version of somebody's own", want: []string{stores}},
		{topic: "$SYS/brokers/emqx@127.0.0.1/version", text: "5.8.0", want: []string{"EMQX sends a session max_inflight", "EMQX drops the oldest"}},
		{text: "2.7.9"},
		{text: ""},
	} {
		t.Run(test.text, func(t *testing.T) {
			if test.topic == "" {
				test.topic = topicVersion
			}
			cfg := Config{ShareName: "bridge"}
			if test.plain {
				cfg.ShareName = ""
			}
			found := CheckSoftware(&cfg, parseSoftware(test.topic, []byte(test.text)))
			if len(found) != len(test.want) {
				t.Fatalf("found %+v", found)
			}
			for i, f := range found {
				if !strings.HasPrefix(f.What, test.want[i]) {
					t.Errorf("found %q, want %q", f.What, test.want[i])
				}
				if f.Consequence == "" {
					t.Errorf("%q has no consequence", f.What)
				}
			}
			if !slices.IsSortedFunc(found, func(a, b Finding) int { return strings.Compare(severityOrder(a), severityOrder(b)) }) {
				t.Errorf("not the gravest first: %+v", found)
			}
		})
	}
}

func severityOrder(f Finding) string {
	return map[Severity]string{SeverityError: "0", SeverityWarning: "1", SeverityInfo: "2"}[f.Severity]
}

func FuzzParseSoftware(f *testing.F) {
	for _, text := range []string{"mosquitto version 2.0.11", "mosquitto version 2.0.99999999999999999999", "mosquitto version -1.-1", "5.8.0", "\xff\x00\n"} {
		f.Add(topicVersion, []byte(text))
	}
	f.Add(topicEMQX, []byte("5"))
	f.Fuzz(func(t *testing.T, topic string, payload []byte) {
		s := parseSoftware(topic, payload)
		if len(s.Text) > maxBrokerText+len("EMQX ") || strings.ContainsAny(s.Text, "\n\x00") {
			t.Errorf("text %q", s.Text)
		}
		for _, n := range s.version {
			if n < 0 {
				t.Errorf("version %v", s.version)
			}
		}
		CheckSoftware(&Config{ShareName: "x"}, s)
	})
}
