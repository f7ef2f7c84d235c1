//go:build linux

package bench

import "testing"

// peers are the systems that the bridge is compared with, and the limits of the machine.
func peers(*testing.T) []System { return nil }
