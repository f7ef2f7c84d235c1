//go:build linux

package bench

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/mqttpg/bridge/integration/provider"
)

func TestMain(m *testing.M) {
	// Containers would add a proxy and hide their processes.
	if err := os.Setenv("BRIDGE_TEST_PROVIDER", "processes"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(provider.Main(m))
}

func TestHarness(t *testing.T) {
	server := provider.StartDatabase(t, provider.DatabaseConfig{Settings: serverSettings})
	system := bridge("bridge", bridgeOptions{})
	t.Run("drain", func(t *testing.T) {
		f := drain(t, newStage(t, server, "", drainWork(5000, 1000)), &system)
		for _, name := range []string{"rate", "system", "broker", "database", "peak", "wal"} {
			if f[name] <= 0 {
				t.Errorf("%s is %g", name, f[name])
			}
		}
	})
	t.Run("idle", func(t *testing.T) {
		f := idle(t, newStage(t, server, "", liveWork(500, 1000)), &system, 100*time.Millisecond)
		if f["peak"] <= 0 || f["system"] < 0 {
			t.Errorf("%v", f)
		}
	})
	t.Run("live", func(t *testing.T) {
		f, _ := live(t, newStage(t, server, "", liveWork(500, 1000)), &system, time.Second)
		if f["p50"] <= 0 || f["max"] < f["p50"] {
			t.Errorf("%v", f)
		}
	})
}
