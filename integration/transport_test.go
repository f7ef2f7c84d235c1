//go:build unix

package integration

import (
	"crypto/sha512"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mqttpg/bridge/integration/provider"
)

const brokerPassword = "correct horse battery"

// TestTransports reaches one broker over TCP, TLS with a client certificate, WebSocket, and
// WebSocket over TLS. The devices publish over the plain listener.
func TestTransports(t *testing.T) {
	t.Parallel()
	certificates := newCertificates(t)
	broker := startSecuredBroker(t, certificates)
	login := map[string]string{"BRIDGE_MQTT_USERNAME": "bridge", "BRIDGE_MQTT_PASSWORD": brokerPassword}
	secret := filepath.Join(t.TempDir(), "password")
	must(t, os.WriteFile(secret, []byte(brokerPassword+"\n"), 0o600))
	loginFile := map[string]string{"BRIDGE_MQTT_USERNAME": "bridge", "BRIDGE_MQTT_PASSWORD_FILE": secret}
	certificate := certificates.environment(t)

	for _, test := range []struct {
		name, scheme string
		env          map[string]string
	}{
		{"TCP with user name and password", "mqtt", login},
		{"TLS with client certificate", "mqtts", certificate},
		{"WebSocket with a password from a file", "ws", loginFile},
		{"WebSocket over TLS with client certificate", "wss", certificate},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := &scene{database: provider.SharedDatabase(t).Fresh(t)}
			url := test.scheme + "://" + broker.Addr(test.scheme)
			bridge := s.start(t, streamRoutes, test.env, map[string]string{
				"BRIDGE_MQTT_URLS":       url,
				"BRIDGE_MQTT_SHARE_NAME": test.scheme, // each takes all, not its part
			})
			load := newStreamLoad(300)
			newPublisher(t, broker.URL(), "devices-"+test.scheme).sendAll(t.Context(), t, load.messages)
			load.waitAndCompare(t, s, true, bridge)
			if _, health := page(t, bridge, "/health"); !strings.Contains(health, url) {
				t.Errorf("/health does not name the broker %s: %s", url, health)
			}
			terminate(t, bridge)
		})
	}
}

// TestWrongPassword connects with a wrong password. The reason stands in /health and in the log,
// the password stands nowhere.
func TestWrongPassword(t *testing.T) {
	t.Parallel()
	broker := startSecuredBroker(t, newCertificates(t))
	s := &scene{database: provider.SharedDatabase(t).Fresh(t)}
	const wrong = "hunter2-not-this-one"
	bridge := s.launch(t, streamRoutes, map[string]string{
		"BRIDGE_MQTT_URLS":     "mqtt://" + broker.Addr("mqtt"),
		"BRIDGE_MQTT_USERNAME": "bridge",
		"BRIDGE_MQTT_PASSWORD": wrong,
	})
	eventually(t, "/health says that the broker refuses the bridge", func() (bool, string) {
		_, health := page(t, bridge, "/health")
		return containsAll(health, "not authorized"), health
	})
	if ok, state := notReady(t, bridge, "broker", "not authorized"); !ok {
		t.Error(state)
	}
	for _, path := range []string{"/health", "/readyz?verbose", "/metrics", "/"} {
		if _, body := page(t, bridge, path); strings.Contains(body, wrong) {
			t.Errorf("%s shows the password", path)
		}
	}
	if !containsAll(bridge.Logs(), "not authorized") {
		t.Error("the log does not say why the broker refuses the bridge")
	}
	if strings.Contains(bridge.Logs(), wrong) {
		t.Error("the log shows the password")
	}
}

// startSecuredBroker starts a broker with a listener for each transport, named by its scheme: a
// password opens the plain ones, a certificate those with TLS, and everybody may use the one
// without name.
func startSecuredBroker(t *testing.T, c certificates) *provider.Broker {
	t.Helper()
	login := []string{"allow_anonymous false", "password_file {dir}/passwords"}
	tls := []string{
		"allow_anonymous false", "require_certificate true", "use_identity_as_username true",
		"cafile {dir}/ca.pem", "certfile {dir}/server.pem", "keyfile {dir}/server.key",
	}
	websockets := []string{"protocol websockets"}
	return provider.StartBroker(t, provider.BrokerConfig{
		Conf: []string{"per_listener_settings true"},
		Listeners: map[string][]string{
			"":      {"allow_anonymous true"},
			"mqtt":  login,
			"mqtts": tls,
			"ws":    append(websockets, login...),
			"wss":   append(websockets, tls...),
		},
		Files: map[string][]byte{
			"passwords":  []byte(passwordLine("bridge", brokerPassword)),
			"ca.pem":     c.authority,
			"server.pem": c.server.certificate,
			"server.key": c.server.key,
		},
	})
}

// passwordLine is an entry of Mosquitto's password file: the salted SHA-512 of the password.
func passwordLine(user, password string) string {
	salt := []byte("twelve bytes") // Mosquitto takes no other number
	sum := sha512.Sum512(append([]byte(password), salt...))
	return fmt.Sprintf("%s:$6$%s$%s\n", user, base64.StdEncoding.EncodeToString(salt), base64.StdEncoding.EncodeToString(sum[:]))
}
