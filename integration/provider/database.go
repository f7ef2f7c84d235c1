//go:build unix

package provider

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/mqttpg/bridge/integration/localpg"
	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/modules/postgres"
)

const (
	postgresImage    = "postgres:15"
	databaseRole     = localpg.Role
	databasePassword = "bridge" // of a throwaway server on loopback; processes make their own
)

// DatabaseConfig describes a PostgreSQL server. The zero value is one that is as careful with data
// as a real one: fsync and synchronous_commit are on.
type DatabaseConfig struct {
	// Settings are server parameters; they win over the defaults.
	Settings map[string]string
}

// Database is a running PostgreSQL server.
type Database struct {
	Server
	url func(database string) string

	mu        sync.Mutex
	templates map[string]error // made so far, by name
}

// StartDatabase starts a server for one test that means to stop, kill or pause it. It ends with
// the test, and its log is shown when the test fails.
func StartDatabase(t testing.TB, config DatabaseConfig) *Database {
	t.Helper()
	d, err := NewDatabase(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	d.endWith(t)
	return d
}

// SharedDatabase returns the server that the tests of this binary share, which none of them may
// stop. It is started by the first call and ended by Main or Close.
func SharedDatabase(t testing.TB) *Database {
	t.Helper()
	s, err := open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.sharing.Lock()
	defer s.sharing.Unlock()
	if s.shared == nil {
		// The first test to ask must not take the server with it when it ends.
		s.shared, err = NewDatabase(context.WithoutCancel(t.Context()), DatabaseConfig{})
		if err != nil {
			t.Fatal(err)
		}
	}
	return s.shared
}

// NewDatabase starts a server and returns when it answers. The caller closes it.
func NewDatabase(ctx context.Context, config DatabaseConfig) (*Database, error) {
	session, err := open(ctx)
	if err != nil {
		return nil, err
	}
	port, err := reservePort()
	if err != nil {
		return nil, err
	}
	settings := map[string]string{
		"fsync":              "on",
		"synchronous_commit": "on",
		"max_connections":    "200",
	}
	maps.Copy(settings, config.Settings)

	d := &Database{Server: Server{name: "database"}, templates: map[string]error{}}
	d.answers = func(ctx context.Context) error {
		conn, err := pgx.Connect(ctx, d.AdminURL())
		if err != nil {
			return err
		}
		return conn.Close(ctx)
	}
	if session.kind == Containers {
		d.machine = databaseContainer(session, settings, port)
		d.url = func(database string) string { return databaseURL(port, database) }
	} else {
		dir, err := session.folder("postgres")
		if err != nil {
			return nil, err
		}
		m := &localMachine{
			log: filepath.Join(dir, "log"), dir: dir,
			config: localpg.Config{Dir: filepath.Join(dir, "cluster"), TCP: true, Port: port, Settings: settings},
		}
		d.machine, d.url = m, m.url
	}
	if err := d.Start(ctx); err != nil {
		return nil, errors.Join(err, d.Close(ctx))
	}
	return d, nil
}

// AdminURL is the address of the maintenance database, for a superuser.
func (d *Database) AdminURL() string { return d.url("postgres") }

// Fresh makes an empty database for one test and returns its URL. The database is dropped with the
// test.
func (d *Database) Fresh(t testing.TB) string {
	t.Helper()
	return d.clone(t, "template1")
}

// Clone makes a database for one test that is a copy of a template and returns its URL. The
// template is filled by prepare at the first call with its name.
func (d *Database) Clone(t testing.TB, template string, prepare func(ctx context.Context, url string) error) string {
	t.Helper()
	d.mu.Lock()
	err, made := d.templates[template]
	if !made {
		err = d.makeTemplate(t.Context(), template, prepare)
		d.templates[template] = err
	}
	d.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	return d.clone(t, template)
}

func (d *Database) makeTemplate(ctx context.Context, name string, prepare func(context.Context, string) error) error {
	if err := d.execute(ctx, "create database "+pgx.Identifier{name}.Sanitize()); err != nil {
		return err
	}
	if err := prepare(ctx, d.url(name)); err != nil {
		return fmt.Errorf("prepare the template %s: %w", name, err)
	}
	return nil
}

func (d *Database) clone(t testing.TB, template string) string {
	t.Helper()
	name := "test_" + strings.ToLower(rand.Text()[:12])
	quoted := pgx.Identifier{name}.Sanitize()
	if err := d.execute(t.Context(), "create database "+quoted+" template "+pgx.Identifier{template}.Sanitize()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// A test may leave its server down; the database goes with it then.
		if err := d.execute(context.WithoutCancel(t.Context()), "drop database "+quoted+" with (force)"); err != nil {
			t.Logf("the database stays until its server ends: %v", err)
		}
	})
	return d.url(name)
}

func (d *Database) execute(ctx context.Context, statement string) error {
	conn, err := pgx.Connect(ctx, d.AdminURL())
	if err != nil {
		return fmt.Errorf("connect to the database: %w", err)
	}
	_, err = conn.Exec(ctx, statement)
	if err != nil {
		err = fmt.Errorf("%s: %w", statement, err)
	}
	return errors.Join(err, conn.Close(ctx))
}

func databaseURL(port int, database string) string {
	u := url.URL{
		Scheme:   "postgres",
		User:     url.UserPassword(databaseRole, databasePassword),
		Host:     net.JoinHostPort("127.0.0.1", strconv.Itoa(port)),
		Path:     "/" + database,
		RawQuery: "sslmode=disable",
	}
	return u.String()
}

func databaseContainer(s *session, settings map[string]string, port int) machine {
	// The whole command: the module's own turns fsync off.
	command := []string{"postgres"}
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		command = append(command, "-c", name+"="+settings[name])
	}
	return &containerMachine{
		label:     s.label,
		published: map[int]int{5432: port},
		run: func(ctx context.Context, options ...testcontainers.ContainerCustomizer) (testcontainers.Container, error) {
			options = append(options,
				postgres.WithUsername(databaseRole),
				postgres.WithPassword(databasePassword),
				postgres.WithDatabase("postgres"),
				testcontainers.WithCmd(command...))
			c, err := postgres.Run(ctx, imageName("BRIDGE_TEST_POSTGRES_IMAGE", postgresImage), options...)
			if c == nil {
				return nil, err // an interface that holds a nil pointer is not nil
			}
			return c, err
		},
	}
}

// localMachine is a cluster of local processes.
type localMachine struct {
	config   localpg.Config
	dir, log string

	mu     sync.Mutex
	server *localpg.Server
	up     bool
}

func (m *localMachine) url(database string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.server.URL(database)
}

func (m *localMachine) start(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.up {
		return errors.New("it is running already")
	}
	if m.server != nil {
		err := m.server.Restart(ctx)
		m.up = err == nil
		return err
	}
	log, err := os.OpenFile(m.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	m.config.Log = log // open as long as the server lives, which is about as long as the tests
	m.server, err = localpg.Start(ctx, m.config)
	m.up = err == nil
	return err
}

func (m *localMachine) stop(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.up {
		return errors.New("it is not running")
	}
	m.up = false
	return m.server.Stop()
}

func (m *localMachine) kill(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.up {
		return errors.New("it is not running")
	}
	m.up = false
	return m.server.Kill()
}

func (m *localMachine) pid() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.up {
		return 0
	}
	return m.server.PID()
}

func (m *localMachine) pause(context.Context) error  { return m.server.Pause() }
func (m *localMachine) resume(context.Context) error { return m.server.Resume() }

func (m *localMachine) logs(context.Context) (string, error) {
	data, err := os.ReadFile(m.log)
	return string(data), err
}

func (m *localMachine) remove(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.up {
		m.up = false
		if err := m.server.Kill(); err != nil { // its data is removed anyway
			return err
		}
	}
	var err error
	if file, ok := m.config.Log.(*os.File); ok {
		err = file.Close()
	}
	return errors.Join(err, os.RemoveAll(m.dir))
}
