package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"
	"github.com/jackc/pgx/v5"
)

// mosquitto is a real broker whose state can be put back.
type mosquitto struct {
	t         *testing.T
	addr, dir string
	said      *output
	process   *exec.Cmd
}

func startMosquitto(t *testing.T, settings string) *mosquitto {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m := &mosquitto{t: t, addr: l.Addr().String(), dir: t.TempDir(), said: &output{}}
	_, port, _ := net.SplitHostPort(m.addr)
	_ = l.Close()
	config := fmt.Sprintf("listener %s 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\npersistence true\npersistence_location %s/\n%s\n", port, m.dir, settings)
	if os.Geteuid() == 0 {
		config = "user root\n" + config
	}
	if err := os.WriteFile(m.file("mosquitto.conf"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	m.start()
	t.Cleanup(func() {
		m.kill()
		if t.Failed() {
			t.Logf("the broker said:\n%s", m.said)
		}
	})
	return m
}

func (m *mosquitto) file(name string) string { return filepath.Join(m.dir, name) }

func (m *mosquitto) start() {
	m.t.Helper()
	path := "mosquitto"
	if _, err := exec.LookPath(path); err != nil {
		path = "/usr/sbin/mosquitto"
	}
	m.process = exec.Command(path, "-v", "-c", m.file("mosquitto.conf"))
	m.process.Stdout, m.process.Stderr = m.said, m.said
	if err := m.process.Start(); err != nil {
		m.t.Fatalf("these tests need mosquitto: %v", err)
	}
	eventually(m.t, "mosquitto listens", func() (bool, string) {
		nc, err := net.Dial("tcp", m.addr)
		if err == nil {
			_ = nc.Close()
		}
		return err == nil, m.said.String()
	})
}

func (m *mosquitto) kill() {
	_ = m.process.Process.Kill()
	_ = m.process.Wait()
}

// save makes the broker write its state, and returns it.
func (m *mosquitto) save() []byte {
	m.t.Helper()
	_ = os.Remove(m.file("mosquitto.db"))
	if err := m.process.Process.Signal(syscall.SIGUSR1); err != nil {
		m.t.Fatal(err)
	}
	var state []byte
	eventually(m.t, "the broker has saved", func() (bool, string) {
		var err error
		state, err = os.ReadFile(m.file("mosquitto.db")) // it appears whole, by rename
		return err == nil && len(state) > 0, m.said.String()
	})
	return state
}

// restore crashes the broker and starts it with an older state.
func (m *mosquitto) restore(state []byte) {
	m.t.Helper()
	m.kill()
	if err := os.WriteFile(m.file("mosquitto.db"), state, 0o600); err != nil {
		m.t.Fatal(err)
	}
	m.start()
}

// publish publishes with QoS 1 and waits for the broker's answers.
func (m *mosquitto) publish(topic string, payloads ...string) {
	m.t.Helper()
	nc, err := net.Dial("tcp", m.addr)
	if err != nil {
		m.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	client := paho.NewClient(paho.ClientConfig{Conn: packets.NewThreadSafeConn(nc), PacketTimeout: patience})
	if _, err := client.Connect(ctx, &paho.Connect{ClientID: "publisher", CleanStart: true, KeepAlive: 60}); err != nil {
		m.t.Fatal(err)
	}
	for _, payload := range payloads {
		if _, err := client.Publish(ctx, &paho.Publish{Topic: topic, QoS: 1, Payload: []byte(payload)}); err != nil {
			m.t.Fatal(err)
		}
	}
	_ = client.Disconnect(&paho.Disconnect{})
	<-client.Done()
}

// program is a bridge in a process of its own.
type program struct {
	*exec.Cmd
	said *output
	url  string
}

// launch starts a bridge process with the environment of the test.
func launch(t *testing.T) *program {
	t.Helper()
	p := &program{Cmd: exec.Command(os.Args[0]), said: &output{}}
	p.Env = append(os.Environ(), asProgram+"=yes")
	p.Stdout, p.Stderr = p.said, p.said
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("a bridge said:\n%s", p.said)
		}
	})
	address := regexp.MustCompile(`"http server listens","address":"([^"]+)"`)
	eventually(t, "the bridge has subscribed", func() (bool, string) {
		if found := address.FindStringSubmatch(p.said.String()); found != nil {
			p.url = "http://" + found[1]
		}
		return strings.Contains(p.said.String(), `"message":"subscribed"`), p.said.String()
	})
	return p
}

func (p *program) kill() {
	_ = p.Process.Kill()
	_ = p.Wait()
}

// received is how many messages the bridge has taken from the broker.
func (p *program) received(t *testing.T, route string) string {
	t.Helper()
	_, body := (&running{t: t, url: p.url}).get("/metrics")
	found := regexp.MustCompile(`(?m)^bridge_messages_received_total\{[^}]*route="` + route + `"[^}]*\} (\S+)`).FindStringSubmatch(body)
	if found == nil {
		return "0"
	}
	return found[1]
}

var readings = []string{
	"BRIDGE_HTTP_ADDR=127.0.0.1:0",
	"BRIDGE_MQTT_MODE=exclusive", // Mosquitto stores plain subscriptions, and no shared ones
	"BRIDGE_ROUTES=readings",
	"BRIDGE_ROUTE_READINGS_TOPIC=readings/{device_id}",
	"BRIDGE_ROUTE_READINGS_FORMAT=text",
	"BRIDGE_ROUTE_READINGS_COLUMNS=value:float8=payload",
	"BRIDGE_ROUTE_READINGS_PAYLOAD=drop",
	"BRIDGE_ROUTE_READINGS_PARTITION=none",
}

// TestBrokerRestoredFromOlderState puts Mosquitto back to an earlier state, as a crash between two
// autosaves does. It then gives the packet identifiers of committed messages to new ones, equal to the
// byte, and the bridge dies before it has committed them: they come again with DUP.
func TestBrokerRestoredFromOlderState(t *testing.T) {
	for _, tt := range []struct {
		name     string
		inFlight int // unacknowledged in the state that is restored
		dies     bool
	}{
		{"the bridge lives", 0, false},
		{"the bridge lives, with messages under way in the old state", 5, false},
		{"the bridge dies before it commits", 0, true},
		{"the bridge dies, with messages under way in the old state", 5, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m, url := startMosquitto(t, ""), database(t)
			environment(t, append(readings, "BRIDGE_MQTT_URLS=mqtt://"+m.addr, "BRIDGE_DATABASE_URL="+url)...)
			rows := func(want int) {
				t.Helper()
				eventually(t, fmt.Sprintf("%d rows", want), func() (bool, string) {
					got := query(t, url, `select count(*) from readings`)
					return got == fmt.Sprint(want), got
				})
			}
			lock := func() (release func()) {
				t.Helper()
				conn, err := pgx.Connect(context.Background(), url)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := conn.Exec(context.Background(), `begin; lock table readings in access exclusive mode`); err != nil {
					t.Fatal(err)
				}
				return func() { _ = conn.Close(context.Background()) }
			}
			p := launch(t)
			for n := range 20 {
				m.publish("readings/a", "21.5")
				rows(n + 1)
			}
			committed := 20
			release := func() {}
			if tt.inFlight > 0 {
				release = lock()
				m.publish("readings/a", slices.Repeat([]string{"21.5"}, tt.inFlight)...)
				eventually(t, "they are under way", func() (bool, string) {
					got := p.received(t, "readings")
					return got == fmt.Sprint(committed+tt.inFlight), got
				})
				committed += tt.inFlight
			}
			state := m.save()
			release()
			rows(committed)
			for range 30 { // one after another, so that the ledger gets to know of acknowledgements
				m.publish("readings/a", "21.5")
				committed++
				rows(committed)
			}
			release = lock()
			m.restore(state)
			eventually(t, "the bridge is connected again", func() (bool, string) {
				return strings.Count(p.said.String(), `"message":"subscribed"`) == 2, p.said.String()
			})
			before := p.received(t, "readings")
			m.publish("readings/a", slices.Repeat([]string{"21.5"}, 10)...)
			eventually(t, "the new ones are received", func() (bool, string) {
				got := p.received(t, "readings")
				return got != before &&
					strings.Count(m.said.String()[strings.LastIndex(m.said.String(), "starting"):], "Sending PUBLISH to bridge-0") == 10+tt.inFlight, got
			})
			if tt.dies {
				p.kill()
				// The server has the whole transaction already, and would commit it for the dead.
				query(t, url, `select pg_terminate_backend(pid) from pg_stat_activity
					where datname = current_database() and pid <> pg_backend_pid() and wait_event_type = 'Lock'`)
				eventually(t, "nobody waits for the table", func() (bool, string) {
					got := query(t, url, `select count(*) from pg_locks where not granted`)
					return got == "0", got
				})
				release()
				p = launch(t)
				eventually(t, "they come again", func() (bool, string) {
					got := p.received(t, "readings")
					return got == "10", got // the others need no table, so that they were settled
				})
			} else {
				release()
			}
			m.publish("readings/a", "99") // the last one
			eventually(t, "the last one is written", func() (bool, string) {
				got := query(t, url, `select count(*) from readings where value = 99`)
				return got == "1", got
			})
			rows(committed + 10 + 1)
		})
	}
}
