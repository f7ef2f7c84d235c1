//go:build unix

package localpg

import (
	"io"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

// process is one running postmaster.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when the postmaster and every child that held its log have ended
	err  error         // how it ended; read after done
}

// launch starts the command and waits for it in the background.
func launch(cmd *exec.Cmd, log io.Writer) (*process, error) {
	cmd.Stdout, cmd.Stderr = log, log
	// Wait returns at the log's end of file, thus after the last child; this bounds it.
	cmd.WaitDelay = 10 * time.Second
	p := &process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		// The parent of Pdeathsig is the thread, not the process: were this goroutine free to leave
		// its thread, the server would be interrupted whenever the runtime lets that thread end.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		p.err = cmd.Wait()
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

func (p *process) running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// signal sends sig to the postmaster alone.
func (p *process) signal(sig syscall.Signal) error {
	return p.cmd.Process.Signal(sig)
}

// stopAll halts the postmaster and all its children and returns the children. A process group
// would not do: every child of a postmaster is the leader of its own session.
func (p *process) stopAll() ([]int, error) {
	if err := p.signal(syscall.SIGSTOP); err != nil {
		return nil, err
	}
	halted := map[int]bool{}
	var all []int
	for { // until a listing shows nobody new: the signal may overtake a fork
		pids, err := children(p.cmd.Process.Pid)
		if err != nil {
			return all, err
		}
		fresh := false
		for _, pid := range pids {
			if !halted[pid] {
				halted[pid], fresh = true, true
				all = append(all, pid)
				_ = syscall.Kill(pid, syscall.SIGSTOP) // gone is as good as halted
			}
		}
		if !fresh {
			return all, nil
		}
	}
}
