//go:build unix

package integration

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"
)

// TestStatusTopic follows the retained status of a session: online after connect, offline by the
// Will when the bridge is killed, and offline before a clean disconnect.
func TestStatusTopic(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	const topic = "plant/bridges/bridge-0" // a session's status stands below the topic, under its client id
	bridge := s.start(t, streamRoutes, map[string]string{"BRIDGE_MQTT_STATUS_TOPIC": "plant/bridges"})
	waitRetained(t, s.broker.URL(), topic, "online")
	must(t, bridge.Kill(t.Context()))
	waitRetained(t, s.broker.URL(), topic, "offline")
	must(t, bridge.Start(t.Context()))
	waitRetained(t, s.broker.URL(), topic, "online")
	terminate(t, bridge)
	waitRetained(t, s.broker.URL(), topic, "offline")
}

// waitRetained waits until the broker retains a payload under a topic. Each look is a subscription
// of its own, since the retained message is sent at subscription.
func waitRetained(t *testing.T, brokerURL, topic, want string) {
	t.Helper()
	eventually(t, topic+" says "+want, func() (bool, string) {
		got := retained(t, brokerURL, topic)
		return got == want, fmt.Sprintf("it says %q", got)
	})
}

// retained returns the retained payload of a topic, empty if none comes at once.
func retained(t *testing.T, brokerURL, topic string) string {
	t.Helper()
	u, err := url.Parse(brokerURL)
	must(t, err)
	conn, err := net.DialTimeout("tcp", u.Host, patience)
	must(t, err)
	payloads := make(chan string, 10)
	client := paho.NewClient(paho.ClientConfig{
		Conn: conn,
		OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(p paho.PublishReceived) (bool, error) {
			if p.Packet.Retain {
				payloads <- string(p.Packet.Payload)
			}
			return true, nil
		}},
	})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	_, err = client.Connect(ctx, &paho.Connect{ClientID: "onlooker", CleanStart: true, KeepAlive: 30})
	must(t, err)
	defer func() { _ = client.Disconnect(&paho.Disconnect{}) }()
	_, err = client.Subscribe(ctx, &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: topic, QoS: 1}}})
	must(t, err)
	select {
	case payload := <-payloads:
		return payload
	case <-time.After(300 * time.Millisecond):
		return ""
	}
}
