//go:build unix

package provider

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
)

// session is what one test binary has taken from this machine: a folder, a label that all its
// containers carry, and the janitor that removes both when the binary ends without doing so.
type session struct {
	kind  Kind
	label string
	dir   string

	janitor *os.File // the janitor cleans up when this pipe closes

	sharing sync.Mutex // held while the shared database starts
	shared  *Database

	mu       sync.Mutex
	nextName int
}

var (
	opening sync.Mutex
	current *session
)

// open returns the session of this test binary and starts it at the first call.
func open(ctx context.Context) (*session, error) {
	opening.Lock()
	defer opening.Unlock()
	if current != nil {
		return current, nil
	}
	kind, err := choose(os.Getenv("BRIDGE_TEST_PROVIDER"), os.Getenv("CI") == "true",
		func() error { return engineAnswers(ctx) }, programsInstalled)
	if err != nil {
		return nil, err
	}
	s := &session{kind: kind, label: rand.Text()}
	if s.dir, err = os.MkdirTemp("", "bridge-test-"); err != nil {
		return nil, fmt.Errorf("make the tests' folder: %w", err)
	}
	// The database server runs under an account of its own and has to pass through.
	if err := os.Chmod(s.dir, 0o711); err != nil {
		return nil, fmt.Errorf("open the tests' folder: %w", err)
	}
	if err := s.startJanitor(); err != nil {
		return nil, err
	}
	current = s
	return s, nil
}

// folder makes a folder of its own for one server.
func (s *session) folder(name string) (string, error) {
	s.mu.Lock()
	s.nextName++
	dir := filepath.Join(s.dir, fmt.Sprintf("%s-%d", name, s.nextName))
	s.mu.Unlock()
	if err := os.Mkdir(dir, 0o755); err != nil { // servers run under accounts of their own
		return "", fmt.Errorf("make a folder for %s: %w", name, err)
	}
	return dir, nil
}

// startJanitor runs this very binary once more, see the init function of janitor.go.
func (s *session) startJanitor() error {
	program, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find the test binary: %w", err)
	}
	read, write, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make the janitor's pipe: %w", err)
	}
	cmd := exec.Command(program) // no context: it outlives them all
	cmd.Env = append(os.Environ(), janitorVariable+"="+string(s.kind)+" "+s.label+" "+s.dir)
	cmd.Stdin = read // no output: `go test` waits for whoever holds its pipes
	// A Ctrl-C at the terminal ends the tests, not the one who cleans up after them.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	err = cmd.Start()
	_ = read.Close()
	if err != nil {
		return errors.Join(fmt.Errorf("start the janitor: %w", err), write.Close())
	}
	s.janitor = write
	return nil
}

// Main runs the tests of a package and then ends what they shared. It returns the exit code:
//
//	func TestMain(m *testing.M) { os.Exit(provider.Main(m)) }
func Main(m *testing.M) int {
	code := m.Run()
	if err := Close(); err != nil {
		fmt.Fprintf(os.Stderr, "provider: %v\n", err)
		code = max(code, 1)
	}
	return code
}

// Close ends the servers that tests share and removes the folder of this test binary. Servers
// started for one test have ended with it.
func Close() error {
	opening.Lock()
	defer opening.Unlock()
	s := current
	if s == nil {
		return nil
	}
	current = nil
	var err error
	if s.shared != nil {
		err = s.shared.Close(context.Background())
	}
	return errors.Join(err, os.RemoveAll(s.dir), s.janitor.Close())
}
