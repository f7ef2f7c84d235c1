package localpg

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(orphanVariable); dir != "" {
		orphan(dir)
		return
	}
	goleak.VerifyTestMain(m)
}

func start(t *testing.T, config Config) *Server {
	t.Helper()
	s, err := Start(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func connect(t *testing.T, s *Server, dbname string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), s.URL(dbname))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func execute(t *testing.T, conn *pgx.Conn, sql string) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func value(t *testing.T, conn *pgx.Conn, sql string) string {
	t.Helper()
	var text string
	if err := conn.QueryRow(t.Context(), sql).Scan(&text); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return text
}

// postmaster returns the process id that the server wrote down.
func postmaster(t *testing.T, dir string) int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "data", "postmaster.pid"))
	if err != nil {
		t.Fatal(err)
	}
	first, _, _ := strings.Cut(string(text), "\n")
	pid, err := strconv.Atoi(first)
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

func TestStartAndStop(t *testing.T) {
	var log bytes.Buffer
	s := start(t, Config{Log: &log, Settings: map[string]string{"work_mem": "7MB"}})
	if err := s.CreateDatabase(t.Context(), `odd "name"`); err != nil {
		t.Fatal(err)
	}
	conn := connect(t, s, `odd "name"`)
	for sql, want := range map[string]string{
		"select current_database()":         `odd "name"`,
		"show fsync":                        "on",
		"show synchronous_commit":           "on",
		"show work_mem":                     "7MB",
		"show server_encoding":              "UTF8",
		"show listen_addresses":             "",
		"select current_user::text":         Role,
		"show unix_socket_directories":      s.SocketDir,
		"select inet_client_addr() is null": "true",
	} {
		if got := value(t, conn, "select ("+asQuery(sql)+")::text"); got != want {
			t.Errorf("%s: %q, want %q", sql, got, want)
		}
	}
	if err := s.CreateDatabase(t.Context(), `odd "name"`); err == nil || !strings.Contains(err.Error(), "already exists") {
		t.Errorf("a second database of the same name: %v", err)
	}
	info, err := os.Stat(s.dataDir())
	if err != nil {
		t.Fatal(err)
	}
	if info.Sys().(*syscall.Stat_t).Uid == 0 {
		t.Error("the cluster belongs to root")
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		t.Errorf("the cluster is open to others: %v", mode)
	}
	pid := postmaster(t, s.Dir)

	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("the postmaster is still there: %v", err)
	}
	if _, err := os.Stat(s.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the temporary folder is still there: %v", err)
	}
	if !strings.Contains(log.String(), "database system is ready to accept connections") {
		t.Errorf("the log did not arrive:\n%s", log.String())
	}
	if err := s.Stop(); err != nil {
		t.Errorf("a second Stop: %v", err)
	}
	for name, act := range map[string]func() error{"Kill": s.Kill, "Pause": s.Pause, "Resume": s.Resume} {
		if err := act(); err == nil {
			t.Errorf("%s of a stopped server: no error", name)
		}
	}
}

// asQuery makes "show x" usable inside a select.
func asQuery(sql string) string {
	if name, ok := strings.CutPrefix(sql, "show "); ok {
		return "current_setting('" + name + "')"
	}
	return strings.TrimPrefix(sql, "select ")
}

func TestPSQL(t *testing.T) {
	s := start(t, Config{TCP: true})
	bin, err := FindBin()
	if err != nil {
		t.Fatal(err)
	}
	words := strings.Fields(s.PSQL("postgres"))
	cmd := exec.Command(filepath.Join(bin, words[0]), append(words[1:], "-Atc", "select 40 + 2")...)
	out, err := cmd.CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != "42" {
		t.Errorf("%s: %v\n%s", s.PSQL("postgres"), err, out)
	}
}

func TestTCPWantsThePassword(t *testing.T) {
	s := start(t, Config{TCP: true})
	conn := connect(t, s, "postgres")
	if got := value(t, conn, "select host(inet_server_addr())"); got != "127.0.0.1" {
		t.Errorf("the URL leads to %s", got)
	}
	config := conn.Config().Copy()
	config.Password = "wrong"
	_, err := pgx.ConnectConfig(t.Context(), config)
	var refused *pgconn.PgError
	if !errors.As(err, &refused) || refused.Code != "28P01" {
		t.Errorf("a wrong password: %v, want SQLSTATE 28P01", err)
	}
}

func TestKillLosesNothingCommitted(t *testing.T) {
	s := start(t, Config{TCP: true})
	conn := connect(t, s, "postgres")
	execute(t, conn, "create table t as select generate_series(1, 1000) as n")
	port, pid := s.Port, postmaster(t, s.Dir)
	pids, err := children(pid)
	if err != nil || len(pids) < 2 {
		t.Fatalf("children of the postmaster: %v, %v", pids, err)
	}

	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	for _, gone := range append(pids, pid) {
		await(t, fmt.Sprintf("end of process %d", gone), func() bool { return !alive(gone) })
	}
	if err := conn.Ping(t.Context()); err == nil {
		t.Error("the connection outlived Kill")
	}
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s.Port != port {
		t.Errorf("port %d after Restart, was %d", s.Port, port)
	}
	if got := value(t, connect(t, s, "postgres"), "select count(*)::text from t"); got != "1000" {
		t.Errorf("%s rows after recovery, want 1000", got)
	}
	if !strings.Contains(s.log.String(), "redo") {
		t.Errorf("no recovery in the log, so it was no crash:\n%s", s.log)
	}
}

func TestRestartOfARunningServer(t *testing.T) {
	s := start(t, Config{})
	pid := postmaster(t, s.Dir)
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if postmaster(t, s.Dir) == pid {
		t.Error("the same postmaster after Restart")
	}
	connect(t, s, "postgres")
}

func TestPause(t *testing.T) {
	s := start(t, Config{})
	// A query in progress is halted too, not only new connections.
	busy, idle := connect(t, s, "postgres"), connect(t, s, "postgres")
	execute(t, idle, "create sequence beat")
	stop := make(chan struct{})
	var beating sync.WaitGroup
	beating.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				_, _ = busy.Exec(t.Context(), "select nextval('beat')")
			}
		}
	})
	if err := s.Pause(); err != nil {
		t.Fatal(err)
	}
	pids, err := children(postmaster(t, s.Dir))
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range append(pids, postmaster(t, s.Dir)) {
		// One that was about to end when it was halted is a zombie, or gone.
		await(t, fmt.Sprintf("halt of process %d", pid), func() bool { return strings.Contains("TZ", stateOf(pid)) })
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := pgx.Connect(ctx, s.URL("postgres")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("connecting to a paused server: %v, want a deadline exceeded", err)
	}
	if err := s.Resume(); err != nil {
		t.Fatal(err)
	}
	close(stop)
	beating.Wait()
	connect(t, s, "postgres")
	if err := busy.Ping(t.Context()); err != nil {
		t.Errorf("the old connection after Resume: %v", err)
	}
	// Stop must also work on a paused server, and Kill.
	if err := s.Pause(); err != nil {
		t.Fatal(err)
	}
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Pause(); err != nil {
		t.Fatal(err)
	}
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
}

func TestNamedFolderIsKept(t *testing.T) {
	dir, err := os.MkdirTemp("/tmp", "localpg-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	// So long a path that no socket fits below it.
	long := filepath.Join(dir, strings.Repeat("long", 30))
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	first := start(t, Config{Dir: long, TCP: true})
	execute(t, connect(t, first, "postgres"), "create table t()")
	if err := first.Stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(first.SocketDir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket's folder is still there: %v", err)
	}
	second := start(t, Config{Dir: long, TCP: true})
	if got := value(t, connect(t, second, "postgres"), "select to_regclass('t')::text"); got != "t" {
		t.Errorf("the table is %q after the second start", got)
	}
}

func TestStartErrors(t *testing.T) {
	empty := t.TempDir()
	cases := []struct {
		name    string
		config  Config
		prepare func(t *testing.T)
		want    string
	}{
		{
			"the server refuses a setting",
			Config{Settings: map[string]string{"shared_buffers": "soup"}},
			nil,
			`invalid value for parameter "shared_buffers"`,
		},
		{"no server in the folder", Config{Bin: empty}, nil, "postgres"},
		{"no binaries anywhere", Config{}, func(t *testing.T) {
			t.Setenv("PG_BIN", empty)
			t.Setenv("PATH", empty)
			patterns := packaged
			packaged = nil
			t.Cleanup(func() { packaged = patterns })
		}, ErrNoBinaries.Error()},
		{"the folder is a file", Config{Dir: "/dev/null"}, nil, "make the server's folder"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if c.prepare != nil {
				c.prepare(t)
			}
			s, err := Start(t.Context(), c.config)
			if err == nil {
				_ = s.Stop()
				t.Fatal("no error")
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %q does not say %q", err, c.want)
			}
		})
	}
	t.Run("the port is taken", func(t *testing.T) {
		taken := start(t, Config{TCP: true})
		s, err := Start(t.Context(), Config{TCP: true, Port: taken.Port})
		if err == nil {
			_ = s.Stop()
			t.Fatal("no error")
		}
		if !strings.Contains(err.Error(), "could not bind") {
			t.Errorf("the error lacks the server's own words: %v", err)
		}
	})
	t.Run("the caller gives up", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if s, err := Start(ctx, Config{}); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v, want context canceled (server %v)", err, s)
		}
	})
}

// Concurrent callers must not trip over one another: each outcome is allowed, a race is not.
func TestConcurrentUse(t *testing.T) {
	s := start(t, Config{})
	var all sync.WaitGroup
	for _, act := range []func() error{
		s.Pause, s.Resume, s.Kill, func() error { return s.Restart(t.Context()) },
		func() error { return s.CreateDatabase(t.Context(), "x") },
	} {
		all.Go(func() { _ = act() })
	}
	all.Wait()
	_ = s.Resume() // whatever came last; a server that was killed last has nothing to resume
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	connect(t, s, "postgres")
}

func TestTailKeepsWholeLastLines(t *testing.T) {
	log := &tail{}
	for i := range 2000 {
		_, _ = log.Write([]byte("line " + strconv.Itoa(i) + "\n"))
	}
	text := log.String()
	if len(text) > tailSize || !strings.HasPrefix(text, "line ") || !strings.HasSuffix(text, "line 1999") {
		t.Errorf("%d bytes, from %.20q to %q", len(text), text, text[max(0, len(text)-20):])
	}
}

func TestNewestVersionFirst(t *testing.T) {
	for _, c := range []struct {
		older, newer string
	}{
		{"/usr/lib/postgresql/9.6/bin", "/usr/lib/postgresql/15/bin"},
		{"/usr/lib/postgresql/15/bin", "/usr/lib/postgresql/18/bin"},
		{"/opt/homebrew/opt/postgresql@9.6/bin", "/opt/homebrew/opt/postgresql@17/bin"},
	} {
		if compareVersions(c.older, c.newer) >= 0 {
			t.Errorf("%s is not older than %s", c.older, c.newer)
		}
	}
}

func TestFindBinObeysTheVariable(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"initdb", "postgres"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PG_BIN", dir)
	if got, err := FindBin(); got != dir || err != nil {
		t.Errorf("found %q, %v, want %q", got, err, dir)
	}
}
