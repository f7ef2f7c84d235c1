//go:build unix

package provider

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
)

// process is a program of this machine that can be started again and again; its output is appended
// to one file. As a machine it is a server.
type process struct {
	path string
	args []string
	env  []string // the whole environment
	dir  string   // working directory; remove removes it
	log  string   // path of the file with its output

	mu  sync.Mutex
	run *run // the last one, nil before the first
}

// run is one life of a process.
type run struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
}

func (r *run) ended() bool {
	select {
	case <-r.done:
		return true
	default:
		return false
	}
}

func (p *process) start(context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.run != nil && !p.run.ended() {
		return errors.New("it is running already")
	}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()     // the child has its own descriptor
	cmd := exec.Command(p.path, p.args...) // no context: it outlives the caller's
	cmd.Dir, cmd.Env = p.dir, p.env
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = childAttributes()
	r := &run{cmd: cmd, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		// The kernel's "tell me when my parent dies" is about the thread that forked. Were this
		// goroutine free to leave it, the child would die when the runtime retires that thread.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // how it ended is read from cmd.ProcessState
			close(r.done)
		}
	}()
	if err := <-started; err != nil {
		return err
	}
	p.run = r
	return nil
}

// signal sends a signal to the running process.
func (p *process) signal(sig syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.run == nil || p.run.ended() {
		return errors.New("it is not running")
	}
	return p.run.cmd.Process.Signal(sig)
}

// wait returns the exit code of the last run when it has ended; -1 means that a signal ended it.
func (p *process) wait(ctx context.Context) (int, error) {
	p.mu.Lock()
	r := p.run
	p.mu.Unlock()
	if r == nil {
		return 0, errors.New("it was never started")
	}
	select {
	case <-r.done:
		return r.cmd.ProcessState.ExitCode(), nil
	case <-ctx.Done():
		return 0, fmt.Errorf("wait for its end: %w", ctx.Err())
	}
}

func (p *process) stop(ctx context.Context) error {
	if err := p.signal(syscall.SIGTERM); err != nil {
		return err
	}
	code, err := p.wait(ctx)
	if err == nil && code != 0 {
		err = fmt.Errorf("exit code %d", code)
	}
	return err
}

func (p *process) kill(ctx context.Context) error {
	if err := p.signal(syscall.SIGKILL); err != nil {
		return err
	}
	_, err := p.wait(ctx)
	return err
}

// pid is that of the running process, 0 when there is none.
func (p *process) pid() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.run == nil || p.run.ended() {
		return 0
	}
	return p.run.cmd.Process.Pid
}

func (p *process) pause(context.Context) error  { return p.signal(syscall.SIGSTOP) }
func (p *process) resume(context.Context) error { return p.signal(syscall.SIGCONT) }

func (p *process) logs(context.Context) (string, error) {
	data, err := os.ReadFile(p.log)
	return string(data), err
}

func (p *process) remove(ctx context.Context) error {
	if p.signal(syscall.SIGKILL) == nil { // also of a stopped process
		if _, err := p.wait(ctx); err != nil {
			return err
		}
	}
	return os.RemoveAll(p.dir)
}
