//go:build unix

package provider

import (
	"net/http"
	"strings"
	"testing"
)

func TestRunBridge(t *testing.T) {
	code, stdout, stderr := RunBridge(t, nil, nil, "version")
	if code != 0 || !strings.HasPrefix(stdout, "bridge ") || stderr != "" {
		t.Errorf("version: exit code %d, stdout %q, stderr %q", code, stdout, stderr)
	}
	code, _, stderr = RunBridge(t, nil, strings.NewReader(""), "no-such-command")
	if code != 2 || !strings.Contains(stderr, "no-such-command") {
		t.Errorf("a wrong command: exit code %d, stderr %q", code, stderr)
	}
}

func TestBridgeKillTermAndStart(t *testing.T) {
	broker := StartBroker(t, BrokerConfig{})
	b := StartBridge(t, map[string]string{
		"BRIDGE_MQTT_URLS":    broker.URL(),
		"BRIDGE_DATABASE_URL": SharedDatabase(t).Fresh(t),
	})
	url := b.URL()
	if err := b.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	var health struct{ Broker, Database any }
	if err := b.Health(t.Context(), &health); err != nil || health.Broker == nil || health.Database == nil {
		t.Errorf("health: %v, %+v", err, health)
	}
	metrics, err := b.Metrics(t.Context())
	if err != nil || metrics["bridge_build_info"] == nil {
		t.Errorf("metrics: %v, %d families", err, len(metrics))
	}

	if err := b.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if code, err := b.Wait(t.Context()); code != -1 || err != nil {
		t.Errorf("after SIGKILL: exit code %d, %v", code, err)
	}
	if _, _, err := b.Get(t.Context(), "/livez"); err == nil {
		t.Error("a killed bridge answers")
	}

	if err := b.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := b.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	if b.URL() != url {
		t.Errorf("the URL was %s and is %s", url, b.URL())
	}
	if status, _, err := b.Get(t.Context(), "/livez"); status != http.StatusOK || err != nil {
		t.Errorf("livez: status %d, %v", status, err)
	}
	if err := b.Term(); err != nil {
		t.Fatal(err)
	}
	if code, err := b.Wait(t.Context()); code != 0 || err != nil {
		t.Errorf("after SIGTERM: exit code %d, %v", code, err)
	}
	if b.PID() != 0 {
		t.Error("it has a process id after its end")
	}
	if b.Logs() == "" {
		t.Error("it logged nothing")
	}
}

func TestWaitReadySaysThatTheBridgeEnded(t *testing.T) {
	b := StartBridge(t, map[string]string{"BRIDGE_MQTT_KEEPALIVE": "never"})
	if err := b.WaitReady(t.Context()); err == nil || !strings.Contains(err.Error(), "ended") {
		t.Errorf("got %v", err)
	}
	if code, err := b.Wait(t.Context()); code != 2 || err != nil {
		t.Errorf("exit code %d, %v; want 2 for wrong configuration", code, err)
	}
}
