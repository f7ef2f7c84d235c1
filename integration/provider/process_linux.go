package provider

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// childAttributes has the kernel kill the child when its parent dies, however that happens. The
// child leads a group of its own, so that a Ctrl-C at the terminal reaches the tests alone.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// processesIn lists the processes that work in a folder or below it, also when it is gone.
func processesIn(dir string) []int {
	var found []int
	links, _ := filepath.Glob("/proc/[0-9]*/cwd") // the pattern is well formed
	for _, link := range links {
		cwd, err := os.Readlink(link)
		if err != nil {
			continue // it ended meanwhile, or is not ours to look at
		}
		if cwd = strings.TrimSuffix(cwd, " (deleted)"); cwd != dir && !strings.HasPrefix(cwd, dir+"/") {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(link))); err == nil {
			found = append(found, pid)
		}
	}
	return found
}
