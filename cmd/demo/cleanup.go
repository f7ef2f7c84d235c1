//go:build unix

package main

import (
	"slices"
	"sync"
)

// cleanup holds what undoes the demonstration's traces. It is safe for concurrent use: a second
// Ctrl-C runs it while the main goroutine is still busy.
type cleanup struct {
	mu      sync.Mutex
	actions []func()
}

func (c *cleanup) add(action func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.actions = append(c.actions, action)
}

// run performs every action once, the latest first.
func (c *cleanup) run() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, action := range slices.Backward(c.actions) {
		action()
	}
	c.actions = nil
}
