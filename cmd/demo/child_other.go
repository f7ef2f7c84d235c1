//go:build unix && !linux

package main

import "syscall"

// childAttributes keeps a Ctrl-C at the terminal from the child, whose end the demonstration
// orders itself.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true}
}
