//go:build unix

package provider

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"
)

// machine is a server as a container, a process, or a cluster of processes.
type machine interface {
	start(ctx context.Context) error // the first time, or again after stop or kill
	stop(ctx context.Context) error  // in good order: the server writes what it holds
	kill(ctx context.Context) error  // as a power cut would
	pause(ctx context.Context) error
	resume(ctx context.Context) error
	logs(ctx context.Context) (string, error)
	pid() int
	remove(ctx context.Context) error // in whatever state it is
}

// Server is what a broker and a database have in common. Its address stays the same over Stop,
// Kill and Start.
type Server struct {
	name    string
	machine machine
	answers func(ctx context.Context) error // one try
}

// Start starts the server after Stop or Kill, and returns when it answers.
func (s *Server) Start(ctx context.Context) error {
	if err := s.machine.start(ctx); err != nil {
		return fmt.Errorf("start the %s: %w", s.name, err)
	}
	return s.awaitAnswer(ctx)
}

// Stop shuts the server down in good order and returns when it has ended.
func (s *Server) Stop(ctx context.Context) error {
	if err := s.machine.stop(ctx); err != nil {
		return fmt.Errorf("stop the %s: %w", s.name, err)
	}
	return nil
}

// Kill ends the server with SIGKILL and returns when it is gone.
func (s *Server) Kill(ctx context.Context) error {
	if err := s.machine.kill(ctx); err != nil {
		return fmt.Errorf("kill the %s: %w", s.name, err)
	}
	return nil
}

// Pause freezes the server: connections stay open and nothing answers, as on a host that hangs.
func (s *Server) Pause(ctx context.Context) error {
	if err := s.machine.pause(ctx); err != nil {
		return fmt.Errorf("pause the %s: %w", s.name, err)
	}
	return nil
}

// Resume lets a paused server go on.
func (s *Server) Resume(ctx context.Context) error {
	if err := s.machine.resume(ctx); err != nil {
		return fmt.Errorf("resume the %s: %w", s.name, err)
	}
	return nil
}

// Logs returns what the server has logged since it was made, over all its starts. When the log
// cannot be read, it says so instead.
func (s *Server) Logs(ctx context.Context) string {
	log, err := s.machine.logs(ctx)
	if err != nil {
		return log + fmt.Sprintf("(the log of the %s cannot be read: %v)", s.name, err)
	}
	return log
}

// PID is the process id of the running server: the postmaster of a database. It is 0 when the server does
// not run, and when it is a container.
func (s *Server) PID() int { return s.machine.pid() }

// endWith removes the server when the test ends and shows its log when the test has failed.
func (s *Server) endWith(t testing.TB) {
	t.Helper()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of the %s:\n%s", s.name, lastLines(s.Logs(context.WithoutCancel(t.Context())), 50))
		}
		if err := s.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// Close removes the server and its data, in whatever state it is. A context that has ended does not
// keep it from that.
func (s *Server) Close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	if err := s.machine.remove(ctx); err != nil {
		return fmt.Errorf("remove the %s: %w", s.name, err)
	}
	return nil
}

// answerTimeout bounds the wait for a server that has been started: a database may have to recover
// after a crash, on a busy machine.
const answerTimeout = 60 * time.Second

// awaitAnswer tries until the server answers. An open port says nothing: the engine's proxy
// accepts connections before there is anybody behind it.
func (s *Server) awaitAnswer(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	var last error
	err := poll(ctx, 20*time.Millisecond, func() (bool, error) {
		// A try of its own may hang: the engine's proxy takes connections that it cannot pass on.
		try, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		last = s.answers(try)
		return last == nil, nil
	})
	if err != nil {
		log := lastLines(s.Logs(context.WithoutCancel(ctx)), 50)
		return fmt.Errorf("wait for the %s: %w: %w\n%s", s.name, err, last, log)
	}
	return nil
}

// poll calls done until it says so, fails, or the context ends.
func poll(ctx context.Context, every time.Duration, done func() (bool, error)) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if ok, err := done(); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// lastLines keeps the end of a log.
func lastLines(log string, n int) string {
	lines := strings.Split(strings.TrimRight(log, "\n"), "\n")
	if len(lines) > n {
		lines = append([]string{fmt.Sprintf("(%d lines before)", len(lines)-n)}, lines[len(lines)-n:]...)
	}
	return strings.Join(lines, "\n")
}
