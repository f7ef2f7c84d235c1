//go:build unix

package provider

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/eclipse/paho.golang/packets"
	"github.com/testcontainers/testcontainers-go"
)

// BrokerConfig describes a Mosquitto broker. The zero value is one that keeps everything: it
// persists, queues without limit, sets no window of its own and lets everybody in.
type BrokerConfig struct {
	// Conf are lines of mosquitto.conf for the whole broker. A line replaces the default lines of
	// the same setting. {dir} stands for the folder that Files are in.
	//
	// The state is saved every second. A test that kills the broker and cares about the last
	// second needs "autosave_on_changes true" and "autosave_interval 1".
	Conf []string

	// Listeners are further ports by name, with their lines of mosquitto.conf (certificates,
	// "protocol websockets"). The listener without name is always there, plain TCP.
	Listeners map[string][]string

	// Files are placed in {dir}, readable by the broker: certificates, password files.
	Files map[string][]byte
}

// Broker is a running Mosquitto.
type Broker struct {
	Server
	ports map[string]int
}

const (
	mosquittoImage  = "eclipse-mosquitto:2"
	mosquittoFolder = "/mosquitto/config"
)

// StartBroker starts a broker for one test. It ends with the test, and its log is shown when the
// test fails.
func StartBroker(t testing.TB, config BrokerConfig) *Broker {
	t.Helper()
	b, err := NewBroker(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	b.endWith(t)
	return b
}

// NewBroker starts a broker and returns when it answers. The caller closes it.
func NewBroker(ctx context.Context, config BrokerConfig) (*Broker, error) {
	session, err := open(ctx)
	if err != nil {
		return nil, err
	}
	b := &Broker{Server: Server{name: "broker"}, ports: map[string]int{}}
	b.answers = func(ctx context.Context) error { return mqttAnswers(ctx, b.Addr("")) }
	for _, name := range append([]string{""}, slices.Sorted(maps.Keys(config.Listeners))...) {
		if b.ports[name], err = reservePort(); err != nil {
			return nil, err
		}
	}
	if session.kind == Containers {
		b.machine = brokerContainer(session, config, b.ports)
	} else if b.machine, err = brokerProcess(session, config, b.ports); err != nil {
		return nil, err
	}
	if err := b.Start(ctx); err != nil {
		return nil, errors.Join(err, b.Close(ctx))
	}
	return b, nil
}

// URL is the address of the plain listener: mqtt://127.0.0.1:PORT.
func (b *Broker) URL() string { return "mqtt://" + b.Addr("") }

// Addr is host and port of a listener, "" being the plain one.
func (b *Broker) Addr(listener string) string {
	port, known := b.ports[listener]
	if !known {
		panic("provider: no listener is named " + listener)
	}
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
}

func brokerContainer(s *session, config BrokerConfig, ports map[string]int) machine {
	// A container has its ports to itself; the same numbers inside and outside are easier to read
	// in its log.
	published := map[int]int{}
	for _, port := range ports {
		published[port] = port
	}
	conf := brokerConf(config, ports, "", mosquittoFolder, "/mosquitto/data", "")
	files := []testcontainers.ContainerFile{containerFile("mosquitto.conf", []byte(conf))}
	for name, data := range config.Files {
		files = append(files, containerFile(name, data))
	}
	return &containerMachine{
		label:     s.label,
		published: published,
		run: func(ctx context.Context, options ...testcontainers.ContainerCustomizer) (testcontainers.Container, error) {
			c, err := testcontainers.Run(ctx, imageName("BRIDGE_TEST_MOSQUITTO_IMAGE", mosquittoImage),
				append(options, testcontainers.WithFiles(files...))...)
			if c == nil {
				return nil, err // an interface that holds a nil pointer is not nil
			}
			return c, err
		},
	}
}

func containerFile(name string, data []byte) testcontainers.ContainerFile {
	return testcontainers.ContainerFile{
		Reader:            bytes.NewReader(data),
		ContainerFilePath: mosquittoFolder + "/" + name,
		FileMode:          0o644, // the broker gives up root before it reads some of them
	}
}

func brokerProcess(s *session, config BrokerConfig, ports map[string]int) (machine, error) {
	path, err := findMosquitto()
	if err != nil {
		return nil, err
	}
	dir, err := s.folder("mosquitto")
	if err != nil {
		return nil, err
	}
	// Started by root it would change to an account that may not write here.
	account, err := user.Current()
	if err != nil {
		return nil, fmt.Errorf("find the account of the broker: %w", err)
	}
	confPath := filepath.Join(dir, "mosquitto.conf")
	conf := brokerConf(config, ports, "127.0.0.1", dir, dir, account.Username)
	if err := os.WriteFile(confPath, []byte(conf), 0o600); err != nil {
		return nil, fmt.Errorf("write the broker's configuration: %w", err)
	}
	for name, data := range config.Files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			return nil, fmt.Errorf("write a file of the broker: %w", err)
		}
	}
	return &process{
		path: path, args: []string{"-c", confPath}, dir: dir,
		env: []string{"PATH=" + os.Getenv("PATH")}, log: filepath.Join(dir, "log"),
	}, nil
}

// brokerConf writes the configuration file. bind is the address to listen on, empty for all; the
// files lie in dir; an empty account leaves the choice to the broker.
func brokerConf(config BrokerConfig, ports map[string]int, bind, dir, dataDir, account string) string {
	defaults := []string{
		"allow_anonymous true",
		"persistence true",
		"persistence_location " + dataDir + "/",
		"autosave_interval 1",
		"max_queued_messages 0",
		"max_inflight_messages 0",
		"log_dest stderr",
		"log_type all",
		"connection_messages true",
	}
	if account != "" {
		defaults = append(defaults, "user "+account)
	}
	own := map[string]bool{}
	for _, line := range config.Conf {
		own[setting(line)] = true
	}
	if own["per_listener_settings"] {
		own["allow_anonymous"] = true // belongs to each listener then
	}
	var out strings.Builder
	write := func(line string) { out.WriteString(strings.ReplaceAll(line, "{dir}", dir) + "\n") }
	for _, line := range defaults {
		if !own[setting(line)] {
			write(line)
		}
	}
	for _, line := range config.Conf {
		write(line)
	}
	for _, name := range slices.Sorted(maps.Keys(ports)) {
		write(strings.TrimSpace(fmt.Sprintf("listener %d %s", ports[name], bind)))
		for _, line := range config.Listeners[name] {
			write(line)
		}
	}
	return out.String()
}

// setting is the first word of a line of mosquitto.conf.
func setting(line string) string {
	word, _, _ := strings.Cut(strings.TrimSpace(line), " ")
	return word
}

// mqttAnswers tries the MQTT handshake. Any CONNACK will do: one that refuses the client comes
// from a broker that is up.
func mqttAnswers(ctx context.Context, address string) error {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	connect := packets.NewControlPacket(packets.CONNECT)
	connect.Content.(*packets.Connect).CleanStart = true
	if _, err := connect.WriteTo(conn); err != nil {
		return err
	}
	reply, err := packets.ReadPacket(conn)
	if err != nil {
		return err
	}
	if reply.Type != packets.CONNACK {
		return fmt.Errorf("got %s instead of CONNACK", reply.PacketType())
	}
	// Without the farewell the broker would log a lost connection.
	_, _ = packets.NewControlPacket(packets.DISCONNECT).WriteTo(conn)
	return nil
}

func imageName(variable, standard string) string {
	if name := os.Getenv(variable); name != "" {
		return name
	}
	return standard
}
