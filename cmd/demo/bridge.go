//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// How long the bridge may take. The stop is beyond its own BRIDGE_SHUTDOWN_TIMEOUT of 25 s.
const (
	readyTimeout = 60 * time.Second
	stopTimeout  = 30 * time.Second
)

// bridge is the real program, running as a child process.
type bridge struct {
	url      string
	settings []setting // its environment

	cmd  *exec.Cmd
	log  *lastLines
	done chan struct{} // closed when it has ended
	err  error         // how; read after done
}

// startBridge builds the bridge unless a binary is given, starts it and waits until it is ready.
func startBridge(ctx context.Context, out io.Writer, o options, undo *cleanup, brokerURL string, db *database) (*bridge, error) {
	binary := o.bridge
	if binary == "" {
		dir, err := os.MkdirTemp("", "bridge-demo-")
		if err != nil {
			return nil, fmt.Errorf("make a temporary folder: %w", err)
		}
		undo.add(func() { _ = os.RemoveAll(dir) })
		sayf(out, "bridge", "building ./cmd/bridge")
		binary = filepath.Join(dir, "bridge")
		build := exec.CommandContext(ctx, "go", "build", "-o", binary, "github.com/mqttpg/bridge/cmd/bridge")
		if text, err := build.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("build the bridge: %w\n%s", err, text)
		}
	}
	// The bridge binds the port itself; should another program be quicker, the bridge says so.
	listener, err := listenPreferring("8080")
	if err != nil {
		return nil, fmt.Errorf("find a port for HTTP: %w", err)
	}
	address := listener.Addr().String()
	_ = listener.Close() // nothing was accepted

	b := &bridge{url: "http://" + address, log: &lastLines{}, done: make(chan struct{})}
	b.settings = append([]setting{
		{"BRIDGE_MQTT_URLS", brokerURL},
		{"BRIDGE_DATABASE_URL", db.url},
		{"BRIDGE_SCHEMA", db.schema},
		{"BRIDGE_HTTP_ADDR", address},
		{"BRIDGE_LOG_FORMAT", "console"},
	}, routeSettings...)
	if o.verbose {
		b.log.also = os.Stderr
	}
	b.cmd = exec.Command(binary, "run")
	b.cmd.Env = b.environment(os.Environ())
	b.cmd.Stdout, b.cmd.Stderr = b.log, b.log
	b.cmd.SysProcAttr = childAttributes()
	if err := b.start(); err != nil {
		return nil, fmt.Errorf("start the bridge: %w", err)
	}
	undo.add(b.kill)
	return b, b.awaitReady(ctx)
}

// start runs the child on a thread of its own: the kernel's signal at a parent's death follows the
// thread that started the child, and that one must not end before the child does.
func (b *bridge) start() error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := b.cmd.Start()
		started <- err
		if err != nil {
			return
		}
		b.err = b.cmd.Wait()
		close(b.done)
	}()
	return <-started
}

// environment is the caller's without its own BRIDGE_ variables, which would mix with the demo's.
func (b *bridge) environment(caller []string) []string {
	env := slices.DeleteFunc(slices.Clone(caller), func(entry string) bool {
		return strings.HasPrefix(entry, "BRIDGE_")
	})
	for _, s := range b.settings {
		env = append(env, s.name+"="+s.value)
	}
	return env
}

func (b *bridge) awaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	said := "nothing yet"
	for {
		status, text, err := get(ctx, b.url+"/readyz")
		switch {
		case err == nil && status == http.StatusOK:
			return nil
		case err == nil:
			said = text
		}
		select {
		case <-b.done:
			return b.obituary()
		case <-ctx.Done():
			return fmt.Errorf("wait for the bridge: %w; it said %s\n%s", ctx.Err(), strings.TrimSpace(said), b.log)
		case <-tick.C:
		}
	}
}

func (b *bridge) running() bool {
	select {
	case <-b.done:
		return false
	default:
		return true
	}
}

// obituary tells how a bridge ended that should have been running.
func (b *bridge) obituary() error {
	how := "exit code 0"
	if b.err != nil {
		how = b.err.Error()
	}
	return fmt.Errorf("the bridge ended by itself (%s); its last words:\n%s", how, b.log)
}

// stop ends the bridge as Kubernetes would: SIGTERM, then exit code 0.
func (b *bridge) stop() error {
	_ = b.cmd.Process.Signal(syscall.SIGTERM) // if it has ended, b.err tells
	timer := time.NewTimer(stopTimeout)
	defer timer.Stop()
	select {
	case <-b.done:
	case <-timer.C:
		return fmt.Errorf("the bridge was still running %v after SIGTERM; its last words:\n%s", stopTimeout, b.log)
	}
	if b.err != nil {
		return fmt.Errorf("stop the bridge: %w; its last words:\n%s", b.err, b.log)
	}
	return nil
}

func (b *bridge) kill() {
	if b.running() {
		_ = b.cmd.Process.Kill() // ended meanwhile is as good
		<-b.done
	}
}

// get returns status and body of one HTTP request.
func get(ctx context.Context, url string) (int, string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, "", err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return 0, "", errors.Join(fmt.Errorf("read %s", url), err)
	}
	return response.StatusCode, string(body), nil
}

// lastLines keeps the end of a log. It is safe for concurrent use.
type lastLines struct {
	also io.Writer // gets everything, when set

	mu   sync.Mutex
	text []byte
}

// maxLastWords is how much of a log is kept, in bytes.
const maxLastWords = 3000

// Write never fails.
func (l *lastLines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.also != nil {
		_, _ = l.also.Write(p) // for people; the log goes on without them
	}
	l.text = append(l.text, p...)
	if excess := len(l.text) - maxLastWords; excess > 0 {
		l.text = append(l.text[:0], l.text[excess:]...)
	}
	return len(p), nil
}

// String returns whole lines only.
func (l *lastLines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	text := string(l.text)
	if len(l.text) == maxLastWords {
		if _, rest, ok := strings.Cut(text, "\n"); ok {
			text = rest
		}
	}
	return strings.TrimRight(text, "\n")
}
