//go:build unix

package provider

import (
	"fmt"
	"os"
	"testing"
)

func TestReservedPortsAreNobodyElses(t *testing.T) {
	low := 32768
	if data, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range"); err == nil {
		if _, err := fmt.Sscan(string(data), &low); err != nil {
			t.Fatal(err)
		}
	}
	seen := map[int]bool{}
	for range 200 {
		port, err := reservePort()
		if err != nil {
			t.Fatal(err)
		}
		if seen[port] {
			t.Fatalf("port %d was handed out twice", port)
		}
		seen[port] = true
		if port >= low {
			t.Fatalf("port %d can be taken by an outgoing connection", port)
		}
	}
}
