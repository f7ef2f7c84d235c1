package ingest

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// mosquitto is a real broker process on loopback.
type mosquitto struct {
	t    *testing.T
	port int // of the first listener
	dir  string
	cmd  *exec.Cmd
	log  *lockedBuffer
}

type lockedBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// freePort asks the kernel for a port that nobody listens on at this moment.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// startMosquitto runs a broker with a plain listener; extra is appended to its configuration, where
// more listeners may follow, and {dir} stands for a directory the broker can read.
func startMosquitto(t *testing.T, extra string) *mosquitto {
	t.Helper()
	m := &mosquitto{t: t, port: freePort(t), dir: t.TempDir(), log: &lockedBuffer{}}
	config := fmt.Sprintf("per_listener_settings false\nlistener %d 127.0.0.1\nlog_type all\nlog_dest stderr\nmax_queued_messages 0\n", m.port)
	if os.Geteuid() == 0 {
		config = "user root\n" + config
	}
	if !strings.Contains(extra, "allow_anonymous") {
		config += "allow_anonymous true\n"
	}
	config += strings.ReplaceAll(extra, "{dir}", m.dir) + "\n"
	m.write("mosquitto.conf", config)
	m.start()
	t.Cleanup(m.stop)
	return m
}

func (m *mosquitto) write(name, content string) {
	m.t.Helper()
	if err := os.WriteFile(filepath.Join(m.dir, name), []byte(content), 0o600); err != nil {
		m.t.Fatal(err)
	}
}

func (m *mosquitto) start() {
	m.t.Helper()
	m.cmd = exec.Command(mosquittoPath(m.t), "-c", filepath.Join(m.dir, "mosquitto.conf"))
	m.cmd.Stderr, m.cmd.Stdout = m.log, m.log
	if err := m.cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	eventually(m.t, "mosquitto listens", func() bool {
		nc, err := net.Dial("tcp", m.addr())
		if err != nil {
			return false
		}
		nc.Close()
		return true
	})
}

func mosquittoPath(t *testing.T) string {
	t.Helper()
	for _, path := range []string{"mosquitto", "/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto", "/opt/homebrew/sbin/mosquitto"} {
		if found, err := exec.LookPath(path); err == nil {
			return found
		}
	}
	t.Fatal("these tests need mosquitto: install the package mosquitto")
	return ""
}

func (m *mosquitto) addr() string { return fmt.Sprintf("127.0.0.1:%d", m.port) }
func (m *mosquitto) url() string  { return "mqtt://" + m.addr() }

func (m *mosquitto) signal(s syscall.Signal) {
	m.t.Helper()
	if err := m.cmd.Process.Signal(s); err != nil {
		m.t.Fatal(err)
	}
}

func (m *mosquitto) stop() {
	if m.cmd.ProcessState != nil {
		return
	}
	_ = m.cmd.Process.Signal(syscall.SIGCONT)
	_ = m.cmd.Process.Kill()
	_ = m.cmd.Wait()
	if m.t.Failed() {
		m.t.Logf("broker log:\n%s", m.log.String())
	}
}

// eventually waits for a condition that others bring about. The bound is only there to end a test
// that has failed; nothing is measured against it.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("never came true: %s", what)
		}
	}
}
