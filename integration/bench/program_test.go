//go:build linux

package bench

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
)

// program is a child process that ends with its test. Its log is shown when the test fails.
type program struct {
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed when it has ended
}

// startProgram starts a program with no more of the environment than is given.
func startProgram(t *testing.T, path string, args, env []string) *program {
	t.Helper()
	p := &program{cmd: exec.Command(path, args...), log: filepath.Join(t.TempDir(), "log"), done: make(chan struct{})}
	log, err := os.Create(p.log)
	must(t, err)
	defer func() { _ = log.Close() }() // the child has a descriptor of its own
	p.cmd.Env, p.cmd.Stdout, p.cmd.Stderr = env, log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		// Pdeathsig is about the thread that forked: it has to stay.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			_ = p.cmd.Wait() // that it ended before its time shows in what it has not done
			close(p.done)
		}
	}()
	must(t, <-started)
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill() // it may have ended
		<-p.done
		if t.Failed() {
			text, _ := os.ReadFile(p.log)
			t.Logf("log of %s:\n%s", filepath.Base(path), text)
		}
	})
	return p
}

func (p *program) pid() int { return p.cmd.Process.Pid }
