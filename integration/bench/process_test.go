//go:build linux

package bench

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// cpuTime is how long the threads of a process have been on a CPU, those that have ended included. The
// kernel has a clock for it that any process may read, exact to the nanosecond. A process that has ended
// has none.
func cpuTime(pid int) time.Duration {
	const scheduler = 2 // the clock of what the scheduler counted, for a process
	var at unix.Timespec
	if err := unix.ClockGettime(int32(^pid)<<3|scheduler, &at); err != nil {
		return 0
	}
	return time.Duration(at.Nano())
}

// familyTime is the CPU time of a process and all its children, those that it has waited for included,
// without some of those that live.
func familyTime(pid int, without ...int) time.Duration {
	sum := cpuTime(pid) + reapedTime(pid)
	for _, child := range children(pid) {
		sum += cpuTime(child)
	}
	for _, pid := range without {
		sum -= cpuTime(pid)
	}
	return sum
}

// children lists the children of a process.
func children(pid int) []int {
	var list []int
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid)) // the pattern is well formed
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // the thread has ended
		}
		for word := range strings.FieldsSeq(string(text)) {
			if child, err := strconv.Atoi(word); err == nil {
				list = append(list, child)
			}
		}
	}
	return list
}

// reapedTime is the CPU time of children that have ended.
func reapedTime(pid int) time.Duration {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// The name of the program, in parentheses, may hold anything.
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	const userOfChildren, systemOfChildren = 13, 14 // from the state on, which is field 3 of proc(5)
	var ticks int64
	for _, i := range []int{userOfChildren, systemOfChildren} {
		n, err := strconv.ParseInt(fields[i], 10, 64)
		if err != nil {
			return 0
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond // USER_HZ is 100 on every Linux
}

// memory is what a process has of physical memory now, and the most it ever had; bytes.
func memory(pid int) (now, peak int64) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, 0
	}
	for line := range strings.Lines(string(text)) {
		var target *int64
		switch {
		case strings.HasPrefix(line, "VmRSS:"):
			target = &now
		case strings.HasPrefix(line, "VmHWM:"):
			target = &peak
		default:
			continue
		}
		if kib, err := strconv.ParseInt(strings.Fields(line)[1], 10, 64); err == nil {
			*target = kib << 10
		}
	}
	return now, peak
}

func TestProcessFigures(t *testing.T) {
	before := cpuTime(os.Getpid())
	for deadline := time.Now().Add(time.Minute); cpuTime(os.Getpid())-before < 20*time.Millisecond; {
		if time.Now().After(deadline) {
			t.Fatal("the clock of this process stands still")
		}
	}
	if now, peak := memory(os.Getpid()); now <= 0 || peak < now {
		t.Errorf("memory %d, peak %d", now, peak)
	}
	if familyTime(os.Getpid()) < cpuTime(os.Getpid())/2 {
		t.Error("a family takes less than its head")
	}
	const nobody = 1 << 22 // beyond the greatest process id
	if cpuTime(nobody) != 0 || reapedTime(nobody) != 0 || len(children(nobody)) != 0 {
		t.Error("a process that is not there has used CPU time")
	}
}
