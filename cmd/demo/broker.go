//go:build unix

package main

import (
	"fmt"
	"io"
	"log/slog" //nolint:depguard // the embedded broker takes no other logger
	"net"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/hooks/auth"
	"github.com/mochi-mqtt/server/v2/listeners"
)

// broker is an MQTT 5 broker in this process. It keeps nothing on disk and is made for trying
// things out: an outage of its own loses messages.
type broker struct {
	server  *mqtt.Server
	address string
	url     string
}

// startBroker listens on loopback only, at MQTT's own port if nobody has it.
func startBroker() (*broker, error) {
	listener, err := listenPreferring("1883")
	if err != nil {
		return nil, fmt.Errorf("listen for MQTT: %w", err)
	}
	server := mqtt.New(&mqtt.Options{Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err := server.AddHook(new(auth.AllowHook), nil); err != nil {
		return nil, fmt.Errorf("start the broker: %w", err)
	}
	if err := server.AddListener(listeners.NewNet("loopback", listener)); err != nil {
		return nil, fmt.Errorf("start the broker: %w", err)
	}
	if err := server.Serve(); err != nil {
		return nil, fmt.Errorf("start the broker: %w", err)
	}
	address := listener.Addr().String()
	return &broker{server: server, address: address, url: "mqtt://" + address}, nil
}

func (b *broker) close() {
	_ = b.server.Close() // the process ends with it
}

// listenPreferring takes the port people know, or any free one.
func listenPreferring(port string) (net.Listener, error) {
	if listener, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", port)); err == nil {
		return listener, nil
	}
	return net.Listen("tcp", "127.0.0.1:0")
}
