package provider

import "syscall"

// childAttributes has the kernel kill the child when its parent dies, however that happens. The
// child leads a group of its own, so that a Ctrl-C at the terminal reaches the tests alone.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
