//go:build unix

// Package localpg runs a private PostgreSQL server from the binaries installed on this machine.
//
// It is for tests and for the demonstration: a cluster in a folder of its own, reached through a
// Unix socket that only its owner may use, or through a loopback port with a random password. The
// server never runs as root, syncs to disk as a real one does, and ends with the process that
// started it.
package localpg

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// Role is the superuser of every cluster made here.
const Role = "postgres"

// Limits of waiting, for callers whose context has none.
const (
	startTimeout = 3 * time.Minute  // crash recovery on a busy machine included
	stopTimeout  = 30 * time.Second // then the server is killed
)

// socketPathMax is the room for a socket's path on the least generous system (macOS: 104 with the
// closing zero byte).
const socketPathMax = 103

// Config says where and how the server runs.
type Config struct {
	// Dir holds the cluster. Empty means a temporary folder that Stop removes. A named folder is
	// made when missing, kept by Stop, and its cluster is used again by the next Start. When the
	// caller is root, the server's account must be able to reach it.
	Dir string

	// Bin is the folder of the server's binaries; empty means FindBin.
	Bin string

	// TCP opens a port on 127.0.0.1 beside the Unix socket, and URL then leads there.
	TCP bool

	// Port is that port; 0 means a free one, which stays the same over Restart.
	Port int

	// Settings are server parameters, for example "fsync": "off". They win over the defaults.
	Settings map[string]string

	// Log receives the server's log as it is written; nil keeps only its tail, for errors.
	Log io.Writer
}

// Server is a running PostgreSQL. Its methods are safe for concurrent use.
type Server struct {
	// Dir is the folder of the cluster, SocketDir that of its Unix socket.
	Dir, SocketDir string
	// Port is the TCP port, or the number in the socket's name when there is no TCP.
	Port int

	config    Config
	account   *syscall.Credential
	password  string
	log       *tail
	temporary []string // folders that Stop removes

	mu      sync.Mutex // over process and its changes
	process *process
	paused  []int // children halted by Pause
}

// Start makes the cluster if there is none yet, starts the server and returns when it answers. The
// context bounds the start only. Errors carry the tail of the server's log.
func Start(ctx context.Context, config Config) (*Server, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if config.Bin == "" {
		bin, err := FindBin()
		if err != nil {
			return nil, err
		}
		config.Bin = bin
	}
	account, err := serverAccount()
	if err != nil {
		return nil, err
	}
	s := &Server{config: config, account: account, log: &tail{}, Port: 5432}
	if err := s.start(ctx); err != nil {
		s.removeTemporary()
		return nil, err
	}
	return s, nil
}

func (s *Server) start(ctx context.Context) error {
	if err := s.prepareFolders(ctx); err != nil {
		return err
	}
	if err := s.initialise(ctx); err != nil {
		return err
	}
	if !s.config.TCP {
		return s.run(ctx)
	}
	if s.config.Port != 0 {
		s.Port = s.config.Port
		return s.run(ctx)
	}
	// A port that is free now may be taken before the server binds it.
	var err error
	for range 3 {
		if s.Port, err = freePort(); err != nil {
			return err
		}
		if err = s.run(ctx); err == nil || !strings.Contains(s.log.String(), "could not bind") {
			return err
		}
	}
	return err
}

// prepareFolders settles Dir and SocketDir and hands them to the server's account.
func (s *Server) prepareFolders(ctx context.Context) error {
	if s.config.Dir == "" {
		if err := s.makeTemporaryDir(ctx); err != nil {
			return err
		}
	} else {
		dir, err := filepath.Abs(s.config.Dir)
		if err != nil {
			return fmt.Errorf("make %s absolute: %w", s.config.Dir, err)
		}
		s.Dir = dir
		if err := s.adopt(dir); err != nil {
			return err
		}
		if err := s.reachable(ctx, dir); err != nil {
			return err
		}
	}
	s.SocketDir = filepath.Join(s.Dir, "socket")
	if len(s.SocketDir)+len("/.s.PGSQL.65535") > socketPathMax {
		dir, err := os.MkdirTemp("/tmp", "pg-")
		if err != nil {
			return fmt.Errorf("make a folder for the socket: %w", err)
		}
		s.temporary = append(s.temporary, dir)
		s.SocketDir = dir
	}
	return s.adopt(s.SocketDir)
}

// makeTemporaryDir takes the first temporary folder that the server's account can reach: root's
// TMPDIR is often closed to others.
func (s *Server) makeTemporaryDir(ctx context.Context) error {
	var failures []error
	tried := map[string]bool{}
	for _, parent := range []string{os.TempDir(), "/tmp", "/var/tmp"} {
		if tried[parent] {
			continue
		}
		tried[parent] = true
		dir, err := os.MkdirTemp(parent, "bridge-postgres-")
		if err != nil {
			failures = append(failures, fmt.Errorf("make a temporary folder: %w", err))
			continue
		}
		if err = s.adopt(dir); err == nil {
			err = s.reachable(ctx, dir)
		}
		if err == nil {
			s.Dir = dir
			s.temporary = append(s.temporary, dir)
			return nil
		}
		failures = append(failures, err)
		_ = os.RemoveAll(dir)
	}
	return errors.Join(failures...)
}

// adopt makes the folder if it is missing and gives it to the server's account if it is empty. A
// folder with something in it is somebody's: it stays as it is.
func (s *Server) adopt(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the server's folder: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("read the server's folder: %w", err)
	}
	if len(entries) > 0 {
		return nil
	}
	return s.chown(dir)
}

func (s *Server) chown(path string) error {
	if s.account == nil {
		return nil
	}
	if err := os.Chown(path, int(s.account.Uid), int(s.account.Gid)); err != nil {
		return fmt.Errorf("give it to the server's account: %w", err)
	}
	return nil
}

// reachable tries what permission bits only suggest: the server's account enters the folder and
// runs a server binary there.
func (s *Server) reachable(ctx context.Context, dir string) error {
	cmd := s.command(ctx, "postgres", "--version")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("run %s in %s as the server's account: %w\n%s", cmd.Path, dir, err, out)
	}
	return nil
}

func (s *Server) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(s.config.Bin, name), args...)
	cmd.Dir = s.Dir
	// Nothing of the caller's environment: PGDATA, PGPORT or a locale must not reach the server.
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + s.Dir, "LC_ALL=C"}
	cmd.SysProcAttr = attributes(s.account)
	return cmd
}

func (s *Server) dataDir() string { return filepath.Join(s.Dir, "data") }

// initialise makes the cluster. initdb writes into a folder beside the final one, so that an
// interrupted run is never taken for a cluster.
func (s *Server) initialise(ctx context.Context) error {
	passwordFile := filepath.Join(s.Dir, "password")
	if _, err := os.Stat(filepath.Join(s.dataDir(), "PG_VERSION")); err == nil {
		password, err := os.ReadFile(passwordFile)
		if err != nil {
			return fmt.Errorf("read the cluster's password: %w", err)
		}
		s.password = strings.TrimSpace(string(password))
		return nil
	}
	s.password = rand.Text()
	if err := os.WriteFile(passwordFile, []byte(s.password+"\n"), 0o600); err != nil {
		return fmt.Errorf("write the cluster's password: %w", err)
	}
	if err := s.chown(passwordFile); err != nil {
		return err
	}
	unfinished := s.dataDir() + ".unfinished"
	if err := os.RemoveAll(unfinished); err != nil {
		return fmt.Errorf("remove an unfinished cluster: %w", err)
	}
	// Whoever enters the socket's folder is the owner already. A port is open to every account of
	// the machine, and a superuser may run programs: so it takes the password.
	cmd := s.command(ctx, "initdb", "--pgdata", unfinished, "--username", Role, "--pwfile", passwordFile,
		"--auth-local=trust", "--auth-host=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync")
	output := &tail{}
	// In the background as the server is, because of the thread that Pdeathsig is bound to.
	p, err := launch(cmd, output)
	if err != nil {
		return fmt.Errorf("start initdb: %w", err)
	}
	<-p.done
	if p.err != nil {
		return fmt.Errorf("initdb: %w\n%s", errors.Join(ctx.Err(), p.err), output)
	}
	if err := os.Rename(unfinished, s.dataDir()); err != nil {
		return fmt.Errorf("name the new cluster: %w", err)
	}
	return nil
}

// run starts the postmaster and waits until it answers.
func (s *Server) run(ctx context.Context) error {
	settings := map[string]string{
		"unix_socket_directories": s.SocketDir,
		"listen_addresses":        "",
		"jit":                     "off", // compiling costs more than the small statements it would speed up
		"log_line_prefix":         "%m [%p] ",
	}
	if s.config.TCP {
		settings["listen_addresses"] = "127.0.0.1"
	}
	maps.Copy(settings, s.config.Settings)
	args := []string{"-D", s.dataDir(), "-p", strconv.Itoa(s.Port)}
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		args = append(args, "-c", name+"="+settings[name])
	}
	s.log = &tail{}
	var log io.Writer = s.log
	if s.config.Log != nil {
		log = io.MultiWriter(s.log, s.config.Log)
	}
	// The context bounds the start; the server outlives it.
	p, err := launch(s.command(context.WithoutCancel(ctx), "postgres", args...), log)
	if err != nil {
		return fmt.Errorf("start postgres: %w", err)
	}
	if err := s.awaitReady(ctx, p); err != nil {
		return fmt.Errorf("start postgres: %w\n%s", errors.Join(err, s.kill(p)), s.log)
	}
	s.process = p
	return nil
}

func (s *Server) awaitReady(ctx context.Context, p *process) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := pgx.Connect(ctx, s.URL("postgres"))
		if err == nil {
			_ = conn.Close(ctx) // it answered; how the goodbye goes does not matter
			// Another server on the same port could have answered while ours ended.
			if p.running() {
				return nil
			}
		}
		select {
		case <-p.done:
			return fmt.Errorf("it ended: %w", p.err)
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-tick.C:
		}
	}
}

// URL returns the connection URL of a database, for pgx and psql alike.
func (s *Server) URL(dbname string) string {
	if s.config.TCP {
		u := url.URL{
			Scheme:   "postgres",
			User:     url.UserPassword(Role, s.password),
			Host:     net.JoinHostPort("127.0.0.1", strconv.Itoa(s.Port)),
			Path:     "/" + dbname,
			RawQuery: "sslmode=disable",
		}
		return u.String()
	}
	query := url.Values{"host": {s.SocketDir}, "port": {strconv.Itoa(s.Port)}, "user": {Role}}
	// PostgreSQL's URLs know only percent encoding: a plus stays a plus.
	u := url.URL{Scheme: "postgres", Path: "/" + dbname, RawQuery: strings.ReplaceAll(query.Encode(), "+", "%20")}
	return u.String()
}

// PSQL returns the shell line that opens a database with psql. It goes through the socket, so that
// it shows no password.
func (s *Server) PSQL(dbname string) string {
	return fmt.Sprintf("psql -h %s -p %d -U %s %s", s.SocketDir, s.Port, Role, dbname)
}

// CreateDatabase makes an empty database.
func (s *Server) CreateDatabase(ctx context.Context, name string) error {
	conn, err := pgx.Connect(ctx, s.URL("postgres"))
	if err != nil {
		return fmt.Errorf("connect to create database %s: %w", name, err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if _, err := conn.Exec(ctx, "create database "+pgx.Identifier{name}.Sanitize()); err != nil {
		return fmt.Errorf("create database %s: %w", name, err)
	}
	return nil
}

// Stop ends the server in PostgreSQL's fast mode (sessions are closed, everything is written) and
// removes temporary folders. A server that takes longer than half a minute is killed, which is an
// error. Stopping a server that was killed or stopped only removes what is left.
func (s *Server) Stop() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.stop()
	s.removeTemporary()
	return err
}

func (s *Server) stop() error {
	p := s.process
	s.process = nil
	if p == nil {
		return nil
	}
	s.resume(p)
	_ = p.signal(syscall.SIGINT) // it may have ended by itself, which p.err tells
	timer := time.NewTimer(stopTimeout)
	defer timer.Stop()
	select {
	case <-p.done:
	case <-timer.C:
		err := fmt.Errorf("stop postgres: killed, as it was still running after %v\n%s", stopTimeout, s.log)
		return errors.Join(err, s.kill(p))
	}
	if p.err != nil {
		return fmt.Errorf("stop postgres: %w\n%s", p.err, s.log)
	}
	return nil
}

// Kill ends the server as a power cut would: SIGKILL to the postmaster and all its children. It
// returns when they hold nothing any more; nothing was written, and the folder is kept. Restart
// recovers it.
func (s *Server) Kill() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.process
	s.process, s.paused = nil, nil
	if p == nil {
		return errors.New("kill postgres: it is not running")
	}
	return s.kill(p)
}

func (s *Server) kill(p *process) error {
	if !p.running() {
		return nil
	}
	// Halted first, the postmaster can neither start another child nor tell the children to end.
	pids, err := p.stopAll()
	_ = p.signal(syscall.SIGKILL)
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	<-p.done
	return err
}

// Restart stops the server if it is running and starts it again with the same folder and port.
func (s *Server) Restart(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.stop(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	return s.run(ctx)
}

// Pause halts the postmaster and all its children (SIGSTOP): connections stay open and nothing
// answers, as on a host that hangs. A process in the middle of a system call halts at its end.
func (s *Server) Pause() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process == nil {
		return errors.New("pause postgres: it is not running")
	}
	pids, err := s.process.stopAll()
	s.paused = pids
	if err != nil {
		s.resume(s.process)
		return fmt.Errorf("pause postgres: %w", err)
	}
	return nil
}

// Resume lets a paused server go on.
func (s *Server) Resume() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process == nil {
		return errors.New("resume postgres: it is not running")
	}
	s.resume(s.process)
	return nil
}

func (s *Server) resume(p *process) {
	for _, pid := range s.paused {
		_ = syscall.Kill(pid, syscall.SIGCONT) // the postmaster still holds its number, living or not
	}
	s.paused = nil
	_ = p.signal(syscall.SIGCONT)
}

// PID is the process id of the postmaster, the parent of all the server's processes; 0 when it does not run.
func (s *Server) PID() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process == nil || !s.process.running() {
		return 0
	}
	return s.process.cmd.Process.Pid
}

func (s *Server) removeTemporary() {
	for _, dir := range s.temporary {
		_ = os.RemoveAll(dir) // nothing of value; the system empties its temporary folder too
	}
	s.temporary = nil
}

func freePort() (int, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	defer func() { _ = listener.Close() }()
	return listener.Addr().(*net.TCPAddr).Port, nil
}
