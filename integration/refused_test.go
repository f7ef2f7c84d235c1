//go:build unix

package integration

import (
	"log/slog" //nolint:depguard // the embedded broker takes no other logger
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/hooks/auth"
	"github.com/mochi-mqtt/server/v2/listeners"
	"github.com/mqttpg/bridge/integration/provider"
)

// gate is a broker's access control that can forbid to subscribe to telemetry.
type gate struct {
	auth.AllowHook
	forbidden atomic.Bool
}

func (g *gate) ID() string { return "gate" }

func (g *gate) OnACLCheck(_ *mochi.Client, topic string, write bool) bool {
	return write || !g.forbidden.Load() || !strings.Contains(topic, "telemetry")
}

// TestSubscriptionRefused connects to a broker whose access control forbids the topic of one route.
// A connected bridge that is sent nothing looks healthy from the outside, so it must not be called
// ready. The other routes flow meanwhile, and when the operator has mended the rule, the bridge
// recovers by itself.
func TestSubscriptionRefused(t *testing.T) {
	t.Parallel()
	rule := &gate{}
	rule.forbidden.Store(true)
	server := mochi.New(&mochi.Options{Logger: slog.New(slog.DiscardHandler)})
	if err := server.AddHook(rule, nil); err != nil {
		t.Fatalf("broker: %v", err)
	}
	listener := listeners.NewTCP(listeners.Config{ID: "tcp", Address: "127.0.0.1:0"})
	if err := server.AddListener(listener); err != nil {
		t.Fatalf("broker: %v", err)
	}
	if err := server.Serve(); err != nil {
		t.Fatalf("broker: %v", err)
	}
	t.Cleanup(func() { _ = server.Close() })

	s := &scene{database: provider.SharedDatabase(t).Fresh(t)}
	bridge := s.launch(t, streamRoutes, map[string]string{"BRIDGE_MQTT_URLS": "mqtt://" + listener.Address()})
	eventually(t, "/readyz says that the subscription is refused", func() (bool, string) {
		return notReady(t, bridge, "stream/+/telemetry", "not authorized")
	})
	if status, body := page(t, bridge, "/livez"); status != http.StatusOK {
		t.Errorf("/livez with a refused subscription: %d %s", status, body)
	}

	load := newStreamLoad(30)
	allowed := slices.DeleteFunc(slices.Clone(load.messages), func(m message) bool { return strings.HasSuffix(m.topic, "/telemetry") })
	refused := slices.DeleteFunc(slices.Clone(load.messages), func(m message) bool { return !strings.HasSuffix(m.topic, "/telemetry") })
	devices := newPublisher(t, "mqtt://"+listener.Address(), "devices")
	devices.sendAll(t.Context(), t, allowed)
	waitSettled(t, bridge, map[string]int{"orders": 10, "raw": 10})

	rule.forbidden.Store(false)
	waitReady(t, bridge)
	devices.sendAll(t.Context(), t, refused)
	load.waitAndCompare(t, s, true, bridge)
}
