//go:build unix

package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	embeddedpostgres "github.com/fergusstrange/embedded-postgres"
	"github.com/jackc/pgx/v5"

	"github.com/mqttpg/bridge/integration/localpg"
)

// demoSchema holds the demonstration's tables in a database that belongs to somebody else.
const demoSchema = "bridge_demo"

// database is where the rows go.
type database struct {
	url         string // for the bridge
	schema      string // of the bridge's own tables
	description string
	psql        string // the line to type
}

// findDatabase takes the first database that can be had: the one named by BRIDGE_DATABASE_URL,
// installed binaries, the package manager's for root, a download for everybody else.
func findDatabase(ctx context.Context, out io.Writer, undo *cleanup) (*database, error) {
	if dsn := os.Getenv("BRIDGE_DATABASE_URL"); dsn != "" {
		return useDatabase(ctx, dsn, undo)
	}
	db, err := privateServer(ctx, undo)
	if err == nil || ctx.Err() != nil {
		return db, err
	}
	failures := []error{err}
	root := os.Geteuid() == 0
	aptGet, aptErr := exec.LookPath("apt-get")
	if root && aptErr == nil && errors.Is(err, localpg.ErrNoBinaries) {
		sayf(out, "database", "no PostgreSQL here: installing the package postgresql with apt-get (no cluster is made, no service started)")
		if err = installPackage(ctx, aptGet, createClusterFolder); err == nil {
			db, err = privateServer(ctx, undo)
		}
		if err == nil || ctx.Err() != nil {
			return db, err
		}
		failures = append(failures, err)
	}
	if root {
		failures = append(failures, errors.New("the downloaded server does not run as root"))
	} else {
		sayf(out, "database", "no PostgreSQL here: downloading one")
		if db, err = downloadedServer(undo); err == nil {
			return db, nil
		}
		failures = append(failures, err)
	}
	return nil, fmt.Errorf("no database: set BRIDGE_DATABASE_URL, or install PostgreSQL's server (Debian: apt-get install postgresql; "+
		"macOS: brew install postgresql), or run as a normal user who may download it; what was tried:\n%w", errors.Join(failures...))
}

// useDatabase works in a schema of its own that goes away with the demonstration.
func useDatabase(ctx context.Context, dsn string, undo *cleanup) (*database, error) {
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return nil, fmt.Errorf("connect to BRIDGE_DATABASE_URL: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if _, err := conn.Exec(ctx, "create schema "+demoSchema); err != nil {
		return nil, fmt.Errorf("make a schema for the demonstration (if it is left from a killed one: drop schema %s cascade): %w", demoSchema, err)
	}
	undo.add(func() { //nolint:contextcheck // by then the caller's context is done
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := dropSchema(ctx, dsn); err != nil {
			fmt.Fprintln(os.Stderr, "demo:", err)
		}
	})
	return &database{
		url:         withSearchPath(dsn, demoSchema),
		schema:      demoSchema,
		description: "the one of BRIDGE_DATABASE_URL, in the schema " + demoSchema + " (dropped at the end)",
		psql:        "PGOPTIONS='-c search_path=" + demoSchema + `' psql "$BRIDGE_DATABASE_URL"`,
	}, nil
}

func dropSchema(ctx context.Context, dsn string) error {
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return fmt.Errorf("connect to drop schema %s: %w", demoSchema, err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if _, err := conn.Exec(ctx, "drop schema if exists "+demoSchema+" cascade"); err != nil {
		return fmt.Errorf("drop schema %s: %w", demoSchema, err)
	}
	return nil
}

// withSearchPath adds a search path to a connection string of either form.
func withSearchPath(dsn, schema string) string {
	option := "-c search_path=" + schema
	u, err := url.Parse(dsn)
	if err != nil || !strings.Contains(dsn, "://") {
		return dsn + " options='" + option + "'"
	}
	query := u.Query()
	query.Set("options", strings.TrimSpace(query.Get("options")+" "+option))
	// PostgreSQL's URLs know only percent encoding: a plus stays a plus.
	u.RawQuery = strings.ReplaceAll(query.Encode(), "+", "%20")
	return u.String()
}

// privateServer starts the binaries of this machine on a folder of their own.
func privateServer(ctx context.Context, undo *cleanup) (*database, error) {
	server, err := localpg.Start(ctx, localpg.Config{})
	if err != nil {
		return nil, err
	}
	undo.add(func() {
		if err := server.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, "demo:", err)
		}
	})
	if err := server.CreateDatabase(ctx, "demo"); err != nil {
		return nil, err
	}
	return &database{
		url:         server.URL("demo"),
		schema:      "bridge",
		description: "a private PostgreSQL of this machine's binaries, in " + server.Dir + " (removed at the end)",
		psql:        server.PSQL("demo"),
	}, nil
}

// createClusterFolder is where Debian's packages look for their settings.
const createClusterFolder = "/etc/postgresql-common/createcluster.d"

// installPackage installs the server's package without the cluster and the service that come with
// it by default: a setting in folder forbids them meanwhile, and is taken away again.
func installPackage(ctx context.Context, aptGet, folder string) error {
	made, err := makeMissing(folder)
	if err != nil {
		return fmt.Errorf("forbid a cluster: %w", err)
	}
	file := filepath.Join(folder, "bridge-demo.conf")
	if err := os.WriteFile(file, []byte("create_main_cluster = false\n"), 0o644); err != nil {
		return fmt.Errorf("forbid a cluster: %w", err)
	}
	defer func() {
		_ = os.Remove(file)
		for _, dir := range made {
			_ = os.Remove(dir) // succeeds only when it is empty, as it should
		}
	}()
	for _, args := range [][]string{
		{"update", "-q"},
		{"install", "-q", "-y", "--no-install-recommends", "postgresql"},
	} {
		cmd := exec.CommandContext(ctx, aptGet, args...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		// Interrupted, apt-get leaves the packages in order; killed, it does not.
		cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) }
		cmd.WaitDelay = time.Minute
		output := &lastLines{}
		cmd.Stdout, cmd.Stderr = output, output
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("apt-get %s: %w\n%s", args[0], err, output)
		}
	}
	return nil
}

// makeMissing makes a folder with its parents and returns those that were not there, deepest first.
func makeMissing(folder string) ([]string, error) {
	var made []string
	for dir := folder; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(dir); err == nil {
			break
		}
		made = append(made, dir)
	}
	return made, os.MkdirAll(folder, 0o755)
}

// downloadedServer runs the server that the embedded-postgres library fetches. The archive is kept
// in the user's cache folder for the next time.
func downloadedServer(undo *cleanup) (*database, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return nil, fmt.Errorf("find the cache folder: %w", err)
	}
	dir, err := os.MkdirTemp("", "bridge-demo-postgres-")
	if err != nil {
		return nil, fmt.Errorf("make a temporary folder: %w", err)
	}
	undo.add(func() { _ = os.RemoveAll(dir) })
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("find a free port: %w", err)
	}
	port := listener.Addr().(*net.TCPAddr).Port
	_ = listener.Close() // nothing was accepted
	password, output := rand.Text(), &lastLines{}
	cachePath := filepath.Join(cache, "mqttpg-bridge")
	server := embeddedpostgres.NewDatabase(embeddedpostgres.DefaultConfig().
		Port(uint32(port)).Password(password).Database("demo").
		CachePath(cachePath).RuntimePath(filepath.Join(dir, "runtime")).DataPath(filepath.Join(dir, "data")).
		StartParameters(map[string]string{"listen_addresses": "127.0.0.1", "unix_socket_directories": dir}).
		StartTimeout(time.Minute).Logger(output))
	if err := server.Start(); err != nil {
		return nil, fmt.Errorf("download and start PostgreSQL: %w\n%s", err, output)
	}
	undo.add(func() {
		if err := server.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, "demo: stop PostgreSQL:", err)
		}
	})
	u := url.URL{
		Scheme: "postgres", User: url.UserPassword("postgres", password),
		Host: fmt.Sprintf("127.0.0.1:%d", port), Path: "/demo", RawQuery: "sslmode=disable",
	}
	return &database{
		url:         u.String(),
		schema:      "bridge",
		description: "a private PostgreSQL, downloaded (the archive stays in " + cachePath + ")",
		psql:        "psql '" + u.String() + "'",
	}, nil
}
