package main

import "syscall"

// childAttributes keeps a Ctrl-C at the terminal from the child, whose end the demonstration
// orders itself, and has the kernel end it should the demonstration be killed.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
}
