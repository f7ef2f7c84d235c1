//go:build unix

package provider

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"
)

// connect opens a connection whose session outlives it.
func connect(t *testing.T, address, clientID string, cleanStart bool, received chan<- string) (*paho.Client, *paho.Connack) {
	t.Helper()
	var dialer net.Dialer
	conn, err := dialer.DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	client := paho.NewClient(paho.ClientConfig{
		ClientID: clientID,
		Conn:     conn,
		OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(p paho.PublishReceived) (bool, error) {
			received <- string(p.Packet.Payload)
			return true, nil
		}},
	})
	expiry := uint32(3600)
	connack, err := client.Connect(t.Context(), &paho.Connect{
		ClientID: clientID, CleanStart: cleanStart, KeepAlive: 30,
		Properties: &paho.ConnectProperties{SessionExpiryInterval: &expiry},
	})
	if err != nil {
		t.Fatal(err)
	}
	return client, connack
}

func publish(t *testing.T, client *paho.Client, topic, payload string) {
	t.Helper()
	if _, err := client.Publish(t.Context(), &paho.Publish{Topic: topic, QoS: 1, Payload: []byte(payload)}); err != nil {
		t.Fatal(err)
	}
}

func expect(t *testing.T, received <-chan string, want string) {
	t.Helper()
	select {
	case got := <-received:
		if got != want {
			t.Fatalf("received %q, want %q", got, want)
		}
	case <-time.After(30 * time.Second):
		t.Fatalf("did not receive %q", want)
	}
}

func TestBrokerStopAndStartKeepsSessionsAndAddress(t *testing.T) {
	b := StartBroker(t, BrokerConfig{})
	url := b.URL()
	received := make(chan string, 10)
	sub, _ := connect(t, b.Addr(""), "sub", false, received)
	if _, err := sub.Subscribe(t.Context(), &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: "t/#", QoS: 1}}}); err != nil {
		t.Fatal(err)
	}
	if err := sub.Disconnect(&paho.Disconnect{}); err != nil {
		t.Fatal(err)
	}
	pub, _ := connect(t, b.Addr(""), "pub", true, received)
	publish(t, pub, "t/1", "queued")
	if err := pub.Disconnect(&paho.Disconnect{}); err != nil {
		t.Fatal(err)
	}

	if err := b.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if conn, err := net.Dial("tcp", b.Addr("")); err == nil {
		_ = conn.Close()
		t.Fatal("a stopped broker accepts connections")
	}
	if err := b.Start(t.Context()); err != nil {
		t.Fatal(err)
	}

	if b.URL() != url {
		t.Errorf("the URL was %s and is %s", url, b.URL())
	}
	sub, connack := connect(t, b.Addr(""), "sub", false, received)
	if !connack.SessionPresent {
		t.Error("the session is gone")
	}
	expect(t, received, "queued")
	if err := sub.Disconnect(&paho.Disconnect{}); err != nil {
		t.Fatal(err)
	}
	if log := b.Logs(t.Context()); strings.Count(log, " starting") < 2 {
		t.Errorf("the log does not show both starts:\n%s", log)
	}
}

func TestBrokerKillAndStart(t *testing.T) {
	b := StartBroker(t, BrokerConfig{})
	for range 2 {
		if err := b.Kill(t.Context()); err != nil {
			t.Fatal(err)
		}
		if b.answers(t.Context()) == nil {
			t.Fatal("a killed broker answers")
		}
		if err := b.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestBrokerPauseAndResume(t *testing.T) {
	b := StartBroker(t, BrokerConfig{})
	received := make(chan string, 1)
	client, _ := connect(t, b.Addr(""), "c", true, received)
	if err := b.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if b.answers(short) == nil {
		t.Error("a paused broker answers")
	}
	if err := b.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	publish(t, client, "t", "the connection lived on")
	if err := client.Disconnect(&paho.Disconnect{}); err != nil {
		t.Fatal(err)
	}
}

func TestBrokerListenersAndFiles(t *testing.T) {
	b := StartBroker(t, BrokerConfig{
		Conf:      []string{"acl_file {dir}/acl"},
		Files:     map[string][]byte{"acl": []byte("topic read allowed/#\ntopic write allowed/#\n")},
		Listeners: map[string][]string{"second": {"max_connections 10"}},
	})
	if b.Addr("") == b.Addr("second") {
		t.Fatal("both listeners have the same address")
	}
	received := make(chan string, 2)
	sub, _ := connect(t, b.Addr("second"), "sub", true, received)
	if _, err := sub.Subscribe(t.Context(), &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: "#", QoS: 1}}}); err != nil {
		t.Fatal(err)
	}
	pub, _ := connect(t, b.Addr(""), "pub", true, received)
	// The file's rule: what it does not allow is refused, and this Mosquitto also hangs up.
	_, err := pub.Publish(t.Context(), &paho.Publish{Topic: "forbidden", QoS: 1, Payload: []byte("no")})
	if err == nil {
		t.Error("the broker took what the file in {dir} forbids")
	}
	pub, _ = connect(t, b.Addr(""), "pub", true, received)
	publish(t, pub, "allowed/1", "yes")
	expect(t, received, "yes")
}

func TestBrokerConfReplacesDefaults(t *testing.T) {
	conf := brokerConf(BrokerConfig{
		Conf:      []string{"max_queued_messages 5", "password_file {dir}/p"},
		Listeners: map[string][]string{"ws": {"protocol websockets"}},
	}, map[string]int{"": 1883, "ws": 9001}, "127.0.0.1", "/conf", "/data", "somebody")
	for _, want := range []string{
		"max_queued_messages 5\n", "password_file /conf/p\n", "persistence_location /data/\n", "user somebody\n",
		"listener 1883 127.0.0.1\nlistener 9001 127.0.0.1\nprotocol websockets\n",
	} {
		if !strings.Contains(conf, want) {
			t.Errorf("%q is not in\n%s", want, conf)
		}
	}
	if strings.Contains(conf, "max_queued_messages 0") {
		t.Errorf("the default stayed beside the line that replaces it:\n%s", conf)
	}
}
