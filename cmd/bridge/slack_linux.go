package main

import (
	"os"
	"runtime"
	"syscall"
	"time"
)

const (
	// timerSlack is how late the kernel may wake a thread of the service, so that it can wake several at a time. The
	// shortest time that the service waits for anything on purpose is twice as long.
	timerSlack = time.Millisecond

	// slackened tells the process that it has been here before, should the kernel forget what it was asked for.
	slackened = "_BRIDGE_SLACKENED"
)

// slacken makes the kernel take its time with the timers of the service: docs/decisions/0013-timer-slack.md. A thread
// inherits the slack of the one that starts it, and Go's monitor, which it is all about, is started before any code of
// ours. So the program is executed anew, under the same process id and with everything as it was. Where that cannot
// be done nothing is lost but CPU time.
func slacken() {
	if _, again := os.LookupEnv(slackened); again {
		_ = os.Unsetenv(slackened) // it was set, so it can be unset
		return
	}
	path, err := os.Executable()
	if err != nil || !sameFile(path, "/proc/self/exe") { // it was deleted or replaced
		return
	}
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		return
	}
	runtime.LockOSThread() // execve keeps the slack of the thread that calls it
	defer runtime.UnlockOSThread()
	slack := uintptr(timerSlack.Nanoseconds())
	was, err := prctl(syscall.PR_GET_TIMERSLACK, 0)
	if err != nil || was >= slack {
		return
	}
	if _, err := prctl(syscall.PR_SET_TIMERSLACK, slack); err != nil {
		return
	}
	_ = syscall.Exec(path, os.Args, append(os.Environ(), slackened+"=1")) //nolint:gosec // it is this program; it returns when it fails
	_, _ = prctl(syscall.PR_SET_TIMERSLACK, was)
	_ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &files) // Exec has given the program's own back
}

func sameFile(a, b string) bool {
	one, err1 := os.Stat(a)
	other, err2 := os.Stat(b)
	return err1 == nil && err2 == nil && os.SameFile(one, other)
}

func prctl(what int, value uintptr) (uintptr, error) {
	r, _, errno := syscall.RawSyscall(syscall.SYS_PRCTL, uintptr(what), value, 0)
	if errno != 0 {
		return 0, errno
	}
	return r, nil
}
