//go:build unix

package deploy

import (
	"context"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"
	"github.com/mqttpg/bridge/integration/provider"
	"go.yaml.in/yaml/v3"
)

// TestRules asks promtool whether the alerts are rules, and when they fire.
func TestRules(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip("promtool is not installed (Debian: prometheus)")
	}
	// The operator takes what stands below spec and gives it to Prometheus.
	data, err := os.ReadFile(filepath.Join(root, "deploy/k8s/components/prometheus-operator/prometheusrule.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var rule struct{ Spec any }
	if err := yaml.Unmarshal(data, &rule); err != nil {
		t.Fatal(err)
	}
	if data, err = yaml.Marshal(rule.Spec); err != nil {
		t.Fatal(err)
	}
	cases, err := os.ReadFile("testdata/rules_test.yaml")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, data := range map[string][]byte{"rules.yaml": data, "cases.yaml": cases} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range [][]string{{"check", "rules", "--lint-fatal", "rules.yaml"}, {"test", "rules", "cases.yaml"}} {
		cmd := exec.Command(promtool, args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// TestRulesAskForMetricsThatThereAre: a rule about a metric that nobody exports never fires.
func TestRulesAskForMetricsThatThereAre(t *testing.T) {
	wanted := map[string]string{}
	for _, group := range one(t, resources(t, "everything"), "PrometheusRule", "bridge").Spec.Groups {
		for _, rule := range group.Rules {
			for _, metric := range regexp.MustCompile(`\bbridge_[a-z_]+`).FindAllString(rule.Expr, -1) {
				wanted[metric] = rule.Alert
			}
		}
	}
	if len(wanted) < 10 {
		t.Fatalf("%d metrics in the rules: the pattern that finds them is broken", len(wanted))
	}
	broker := provider.StartBroker(t, provider.BrokerConfig{})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	bridge := provider.StartBridge(t, map[string]string{
		"BRIDGE_MQTT_URLS": broker.URL(), "BRIDGE_DATABASE_URL": provider.SharedDatabase(t).Fresh(t), "BRIDGE_BROKER_QUEUE_LIMIT": "1000",
		"BRIDGE_ROUTES": "n", "BRIDGE_ROUTE_N_TOPIC": "n", "BRIDGE_ROUTE_N_COLUMNS": "n:int8=$.n",
	})
	if err := bridge.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	// Some are there only when there is something to count: a message without a table, a connection lost.
	poison(t, broker)
	if err := broker.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	if err := broker.Start(ctx); err != nil {
		t.Fatal(err)
	}
	// The broker tells its own count, and a rate is known, a while after the connection.
	for {
		exported, err := bridge.Metrics(ctx)
		if err != nil {
			t.Fatalf("%v; not exported so far: %v", err, slices.Sorted(maps.Keys(wanted)))
		}
		for metric := range wanted {
			if exported[metric] != nil {
				delete(wanted, metric)
			}
		}
		if len(wanted) == 0 {
			return
		}
		select {
		case <-ctx.Done():
			for metric, alert := range wanted {
				t.Errorf("%s asks for %s, which the bridge does not export", alert, metric)
			}
			return
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// poison publishes a message that becomes a dead letter.
func poison(t *testing.T, broker *provider.Broker) {
	t.Helper()
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(broker.URL(), "mqtt://"))
	if err != nil {
		t.Fatal(err)
	}
	client := paho.NewClient(paho.ClientConfig{Conn: conn})
	if _, err := client.Connect(t.Context(), &paho.Connect{ClientID: "poison", CleanStart: true, KeepAlive: 30}); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Publish(t.Context(), &paho.Publish{Topic: "n", QoS: 1, Payload: []byte("{")}); err != nil {
		t.Fatal(err)
	}
	if err := client.Disconnect(&paho.Disconnect{}); err != nil {
		t.Fatal(err)
	}
}

// TestDocumentedMetrics: the rules are about what docs/operations.md explains.
func TestDocumentedMetrics(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "docs/operations.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, group := range one(t, resources(t, "everything"), "PrometheusRule", "bridge").Spec.Groups {
		for _, rule := range group.Rules {
			for _, metric := range regexp.MustCompile(`\bbridge_[a-z_]+`).FindAllString(rule.Expr, -1) {
				if !strings.Contains(string(text), "`"+metric+"`") {
					t.Errorf("%s asks for %s, which operations.md does not explain", rule.Alert, metric)
				}
			}
		}
	}
}
