//go:build unix

package main

import (
	"os"

	"golang.org/x/sys/unix"
)

// holdsBytes says that a pipe has something to read just now. It does not wait.
func holdsBytes(pipe *os.File) bool {
	fds := []unix.PollFd{{Fd: int32(pipe.Fd()), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n == 1 && fds[0].Revents&unix.POLLIN != 0
}
