//go:build !linux

package ingest

import "net"

// promptness does nothing where the kernel decides alone when it acknowledges.
type promptness struct{}

func newPromptness(net.Conn) promptness { return promptness{} }
func (promptness) acknowledge()         {}
