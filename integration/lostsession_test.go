//go:build unix

package integration

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/mqttpg/bridge/integration/provider"
)

// TestLostSession: a broker that forgets a session loses what it held for it. That is counted, logged
// and shown whether the bridge was connected at the time, away, or another one; and only then.
func TestLostSession(t *testing.T) {
	t.Parallel()
	s := &scene{
		broker:   provider.StartBroker(t, provider.BrokerConfig{Conf: []string{"persistence false"}}),
		database: provider.SharedDatabase(t).Fresh(t),
	}
	restart := func() {
		t.Helper()
		must(t, s.broker.Stop(t.Context()))
		must(t, s.broker.Start(t.Context()))
	}
	tells := func(bridge *provider.Bridge, times int) {
		t.Helper()
		var c struct {
			Status   string   `json:"status"`
			Reasons  []string `json:"reasons"`
			Delivery struct {
				LostSessions []struct {
					ClientID string `json:"client_id"`
					Times    int    `json:"times"`
				} `json:"lost_sessions"`
			} `json:"delivery"`
		}
		wantStatus := "degraded"
		if times == 0 {
			wantStatus = "ok"
		}
		eventually(t, fmt.Sprintf("the session is said to be lost %d times, and the status is %s", times, wantStatus), func() (bool, string) {
			c.Delivery.LostSessions = nil
			must(t, bridge.Health(t.Context(), &c))
			told := 0
			for _, l := range c.Delivery.LostSessions {
				told += l.Times
			}
			status, _ := page(t, bridge, "/readyz")
			return told == times && c.Status == wantStatus && status == http.StatusOK, fmt.Sprintf("%+v, /readyz %d", c, status)
		})
		if times > 0 && !containsAll(strings.Join(c.Reasons, "\n"), "broker bridge-0: the broker had lost the session and what it held for it, found at 20") {
			t.Errorf("reasons %q", c.Reasons)
		}
		if n := scrape(t, bridge).sum("bridge_mqtt_session_lost_total"); n != float64(times) {
			t.Errorf("bridge_mqtt_session_lost_total is %v, want %d", n, times)
		}
		if n := strings.Count(bridge.Logs(), "the broker lost the session"); n < times || times == 0 && n > 0 {
			t.Errorf("the log tells %d times", n)
		}
	}
	bridge := s.start(t, streamRoutes)
	tells(bridge, 0)
	terminate(t, bridge)
	must(t, bridge.Start(t.Context()))
	waitReady(t, bridge)
	tells(bridge, 0) // the broker had kept it

	terminate(t, bridge)
	device := newPublisher(t, s.broker.URL(), "devices")
	load := newStreamLoad(50)
	device.sendAll(t.Context(), t, load.messages)
	device.close()
	restart()
	must(t, bridge.Start(t.Context()))
	waitReady(t, bridge)
	tells(bridge, 1)
	if ok, state := load.arrived(t, s); ok {
		t.Errorf("nothing was lost after all: %s", state)
	}

	restart() // while it is connected
	tells(bridge, 2)

	standby := s.start(t, streamRoutes)
	tells(standby, 0)
	must(t, s.broker.Stop(t.Context()))
	must(t, bridge.Kill(t.Context()))
	eventually(t, "the standby takes the session", func() (bool, string) {
		owned := sessionsOwned(t, standby)
		return owned == 1, fmt.Sprintf("it owns %v", owned)
	})
	must(t, s.broker.Start(t.Context()))
	waitReady(t, standby)
	tells(standby, 1)

	env := merge(streamRoutes, map[string]string{"BRIDGE_DATABASE_URL": s.database})
	for _, words := range [][]string{{"drain", "--force", "0"}, {"drain", "--undo", "0"}} {
		if code, stdout, stderr := provider.RunBridge(t, env, nil, append([]string{"sessions"}, words...)...); code != 0 {
			t.Fatalf("%v: exit code %d, %s%s", words, code, stdout, stderr)
		}
	}
	eventually(t, "the session is in use again", func() (bool, string) {
		owned := sessionsOwned(t, standby)
		got := tableRows(t, s.database, `select count(*) from bridge.sessions where kept and retired_at is null`)
		return owned == 1 && got["1"] == 1, fmt.Sprintf("it owns %v, kept %v", owned, got)
	})
	waitReady(t, standby)
	tells(standby, 1) // one that was drained had nothing to lose
}
