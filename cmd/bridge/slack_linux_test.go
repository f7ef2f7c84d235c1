package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// TestTimerSlack: all threads of the service have it, Go's monitor among them, the process is still the one that was
// started, and its arguments and environment are what they were.
func TestTimerSlack(t *testing.T) {
	b, url := startBroker(t), database(t)
	environment(t, slices.Concat(telemetry, []string{"BRIDGE_MQTT_URLS=" + b.url, "BRIDGE_DATABASE_URL=" + url, asProgram + "=yes"})...)
	for _, args := range [][]string{nil, {"run"}} {
		said := &output{}
		process := exec.Command(os.Args[0], args...)
		process.Stdout, process.Stderr = said, said
		if err := process.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = process.Process.Kill() })
		eventually(t, "the bridge subscribes", func() (bool, string) { return strings.Contains(said.String(), `"message":"subscribed"`), said.String() })
		pid := process.Process.Pid
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
		if err != nil || len(threads) < 2 {
			t.Fatalf("threads %v, %v", threads, err)
		}
		for _, thread := range threads {
			slack, err := os.ReadFile("/proc/" + filepath.Base(thread) + "/timerslack_ns")
			if err != nil || strings.TrimSpace(string(slack)) != fmt.Sprint(timerSlack.Nanoseconds()) {
				t.Errorf("arguments %q: thread %s has a slack of %s ns, %v", args, filepath.Base(thread), slack, err)
			}
		}
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if want := strings.Join(process.Args, "\x00") + "\x00"; err != nil || string(line) != want {
			t.Errorf("the command line is %q, %v; want %q", line, err, want)
		}
		if name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err != nil || !strings.HasPrefix(filepath.Base(os.Args[0]), strings.TrimSpace(string(name))) {
			t.Errorf("the process is called %s, %v", name, err)
		}
		if err := process.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if err := process.Wait(); err != nil {
			t.Errorf("the bridge ended with %v", err)
		}
	}
}
