//go:build unix && !linux

package provider

import "syscall"

// childAttributes puts the child into a group of its own, so that a Ctrl-C at the terminal reaches
// the tests alone. This system does not tell a child that its parent died.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true}
}

// processesIn lists the processes that work in a folder or below it. This system has no such list.
func processesIn(string) []int { return nil }
