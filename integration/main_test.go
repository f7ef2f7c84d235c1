//go:build unix

package integration

import (
	"os"
	"testing"

	"github.com/mqttpg/bridge/integration/provider"
)

func TestMain(m *testing.M) { os.Exit(provider.Main(m)) }
