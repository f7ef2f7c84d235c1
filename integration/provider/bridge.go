//go:build unix

package provider

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// Bridge is the real program as a child process. It keeps its environment and its HTTP port over
// Kill, Term and Start.
type Bridge struct {
	process process
	url     string
}

// StartBridge starts `bridge` with the given environment and no more of it than PATH; it does not
// wait until the bridge is ready. BRIDGE_HTTP_ADDR is a free loopback port unless it is given. The
// bridge ends with the test, and its log is shown when the test fails.
func StartBridge(t testing.TB, env map[string]string) *Bridge {
	t.Helper()
	binary, s := bridgeBinary(t)
	dir, err := s.folder("bridge")
	if err != nil {
		t.Fatal(err)
	}
	env = maps.Clone(env)
	if env == nil {
		env = map[string]string{}
	}
	if env["BRIDGE_HTTP_ADDR"] == "" {
		port, err := reservePort()
		if err != nil {
			t.Fatal(err)
		}
		env["BRIDGE_HTTP_ADDR"] = net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	}
	b := &Bridge{
		process: process{path: binary, dir: dir, env: environment(env), log: filepath.Join(dir, "log")},
		url:     "http://" + env["BRIDGE_HTTP_ADDR"],
	}
	t.Cleanup(func() { b.end(t) })
	if err := b.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return b
}

// end stops the bridge in good order, so that a covered one writes its counters, and looks for
// what must never be in its log.
func (b *Bridge) end(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 10*time.Second)
	defer cancel()
	if b.Term() == nil { // it is running
		if _, err := b.Wait(ctx); err != nil {
			_ = b.process.signal(syscall.SIGKILL) // nothing promises a quick end without its servers
		}
	}
	log := b.Logs()
	for _, bad := range []string{"WARNING: DATA RACE", "\npanic: ", "fatal error: "} {
		if strings.Contains(log, bad) {
			t.Errorf("the bridge logged %q", strings.TrimSpace(bad))
		}
	}
	if t.Failed() {
		t.Logf("log of the bridge at %s:\n%s", b.url, lastLines(log, 80))
	}
	if err := b.process.remove(context.WithoutCancel(t.Context())); err != nil {
		t.Error(err)
	}
}

// Start starts the bridge again after Kill, or after Term and Wait.
func (b *Bridge) Start(ctx context.Context) error {
	if err := b.process.start(ctx); err != nil {
		return fmt.Errorf("start the bridge: %w", err)
	}
	return nil
}

// Kill ends the bridge with SIGKILL and returns when it is gone.
func (b *Bridge) Kill(ctx context.Context) error {
	if err := b.process.kill(ctx); err != nil {
		return fmt.Errorf("kill the bridge: %w", err)
	}
	return nil
}

// Term sends SIGTERM and returns at once.
func (b *Bridge) Term() error {
	if err := b.process.signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("terminate the bridge: %w", err)
	}
	return nil
}

// Pause halts the bridge (SIGSTOP), as on a host that hangs.
func (b *Bridge) Pause() error {
	if err := b.process.signal(syscall.SIGSTOP); err != nil {
		return fmt.Errorf("pause the bridge: %w", err)
	}
	return nil
}

// Resume lets a paused bridge go on.
func (b *Bridge) Resume() error {
	if err := b.process.signal(syscall.SIGCONT); err != nil {
		return fmt.Errorf("resume the bridge: %w", err)
	}
	return nil
}

// Wait returns the exit code when the bridge has ended; -1 means that a signal ended it.
func (b *Bridge) Wait(ctx context.Context) (int, error) { return b.process.wait(ctx) }

// PID is the process id of the running bridge, 0 when it does not run.
func (b *Bridge) PID() int { return b.process.pid() }

// Logs returns what the bridge has written to stdout and stderr, over all its starts.
func (b *Bridge) Logs() string {
	log, err := b.process.logs(context.Background())
	if err != nil {
		return fmt.Sprintf("(the log of the bridge cannot be read: %v)", err)
	}
	return log
}

// URL is the base of the bridge's HTTP addresses: http://127.0.0.1:PORT.
func (b *Bridge) URL() string { return b.url }

// WaitReady returns when /readyz answers 200. That the bridge ends before is an error at once.
func (b *Bridge) WaitReady(ctx context.Context) error {
	var last error
	err := poll(ctx, 20*time.Millisecond, func() (bool, error) {
		if b.PID() == 0 {
			return false, errors.New("it has ended")
		}
		status, body, err := b.Get(ctx, "/readyz?verbose")
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("status %d: %s", status, body)
		}
		if ctx.Err() == nil {
			last = err
		}
		return err == nil, nil
	})
	if err != nil {
		return fmt.Errorf("wait until the bridge is ready: %w: %w", err, last)
	}
	return nil
}

// Get asks a path of the running bridge and returns status and body.
func (b *Bridge) Get(ctx context.Context, path string) (status int, body []byte, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, b.url+path, http.NoBody)
	if err != nil {
		return 0, nil, err
	}
	request.Close = true // an idle connection would outlive the test
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, nil, err
	}
	body, err = io.ReadAll(response.Body)
	return response.StatusCode, body, errors.Join(err, response.Body.Close())
}

// Health decodes /health into what is given.
func (b *Bridge) Health(ctx context.Context, into any) error {
	status, body, err := b.Get(ctx, "/health")
	if err != nil {
		return fmt.Errorf("ask for /health: %w", err)
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("decode /health (status %d, %q): %w", status, body, err)
	}
	return nil
}

// Metrics returns one scrape, by the names of the metric families.
func (b *Bridge) Metrics(ctx context.Context) (map[string]*dto.MetricFamily, error) {
	status, body, err := b.Get(ctx, "/metrics")
	if err != nil {
		return nil, fmt.Errorf("ask for /metrics: %w", err)
	}
	if status != http.StatusOK {
		return nil, fmt.Errorf("ask for /metrics: status %d", status)
	}
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("parse /metrics: %w", err)
	}
	return families, nil
}

// RunBridge runs one command of the bridge to its end and returns exit code, stdout and stderr.
func RunBridge(t testing.TB, env map[string]string, stdin io.Reader, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	binary, _ := bridgeBinary(t)
	var out, errs strings.Builder
	cmd := exec.CommandContext(t.Context(), binary, args...)
	cmd.Env = environment(env)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &out, &errs
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatalf("run bridge %s: %v", strings.Join(args, " "), err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// environment is that of a child: what the test gives, and of the test's own only what a program
// cannot do without. Its BRIDGE_TEST_ variables would be mistakes to the bridge.
func environment(env map[string]string) []string {
	list := []string{"PATH=" + os.Getenv("PATH"), "TMPDIR=" + os.TempDir()}
	if dir := os.Getenv("BRIDGE_TEST_COVERDIR"); dir != "" {
		list = append(list, "GOCOVERDIR="+dir)
	}
	for _, name := range slices.Sorted(maps.Keys(env)) {
		list = append(list, name+"="+env[name])
	}
	return list
}

var (
	buildOnce sync.Once
	buildPath string
	errBuild  error
)

// bridgeBinary builds cmd/bridge once per test binary, with the race detector if the tests have
// it, and returns where it is.
func bridgeBinary(t testing.TB) (string, *session) {
	t.Helper()
	s, err := open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	buildOnce.Do(func() { buildPath, errBuild = buildBridge(s.dir) })
	if errBuild != nil {
		t.Fatal(errBuild)
	}
	return buildPath, s
}

func buildBridge(dir string) (string, error) {
	path := filepath.Join(dir, "bridge")
	// Without the stamp of the checkout, which git refuses to tell when another account owns it.
	args, env := []string{"build", "-buildvcs=false", "-o", path}, os.Environ()
	if raceEnabled {
		args = append(args, "-race")
	} else { // as `make build` does it: what is measured is what people run
		args, env = append(args, "-trimpath"), append(env, "CGO_ENABLED=0")
	}
	if os.Getenv("BRIDGE_TEST_COVERDIR") != "" {
		// The mode in which `go test -race -cover` counts too, or the counters cannot be merged.
		args = append(args, "-cover", "-covermode=atomic")
	}
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	cmd := exec.Command("go", append(args, "./cmd/bridge")...) // no context: a test that ends must not end it for all
	cmd.Dir, cmd.Env = root, env
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the bridge: %w\n%s", err, out)
	}
	return path, nil
}

// moduleRoot is the folder with go.mod, seen from the package under test.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find the module: %w", err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("find the module: no go.mod above the working directory")
		}
		dir = parent
	}
}
