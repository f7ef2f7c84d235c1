//go:build unix

package provider

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/mqttpg/bridge/integration/localpg"
	"github.com/testcontainers/testcontainers-go"
	tclog "github.com/testcontainers/testcontainers-go/log"
)

// Kind names a way to get servers.
type Kind string

// The two providers.
const (
	Containers Kind = "containers"
	Processes  Kind = "processes"
)

// choose decides on the provider from what the environment asks for and what this machine has.
// engine and programs are asked only when the answer matters; each returns why it cannot be used.
func choose(wanted string, ci bool, engine, programs func() error) (Kind, error) {
	switch Kind(wanted) {
	case Containers:
		if err := engine(); err != nil {
			return "", fmt.Errorf("BRIDGE_TEST_PROVIDER=containers, but no Docker engine answers: %w", err)
		}
		return Containers, nil
	case Processes:
		if err := programs(); err != nil {
			return "", fmt.Errorf("BRIDGE_TEST_PROVIDER=processes, but %w", err)
		}
		return Processes, nil
	case "":
	default:
		return "", fmt.Errorf("BRIDGE_TEST_PROVIDER is %q, expected containers or processes", wanted)
	}
	engineErr := engine()
	if engineErr == nil {
		return Containers, nil
	}
	if ci {
		return "", fmt.Errorf("CI=true, but no Docker engine answers: %w", engineErr)
	}
	if err := programs(); err != nil {
		return "", fmt.Errorf("no Docker engine answers (%w), and %w: "+
			"start Docker, or install mosquitto and postgresql (`make setup` does it on Debian and Ubuntu)", engineErr, err)
	}
	return Processes, nil
}

// engineAnswers reports why no Docker engine can be used, or nil.
func engineAnswers(ctx context.Context) (err error) {
	// Settings that testcontainers reads once, at its first use. Without the first, it takes the
	// default gateway for the Docker host when it believes to be in a container. The second turns
	// off its clean-up container: the janitor does that work, also where no registry is reachable.
	if host := os.Getenv("DOCKER_HOST"); host == "" || strings.HasPrefix(host, "unix://") {
		setDefault("TESTCONTAINERS_HOST_OVERRIDE", "127.0.0.1")
	}
	setDefault("TESTCONTAINERS_RYUK_DISABLED", "true")
	tclog.SetDefault(tclog.NewNoopLogger())

	defer func() {
		// It panics where it finds no socket at all.
		if r := recover(); r != nil {
			err = fmt.Errorf("%v", r)
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	docker, err := testcontainers.NewDockerProvider()
	if err != nil {
		return err
	}
	return docker.Health(ctx)
}

func setDefault(name, value string) {
	if _, set := os.LookupEnv(name); !set {
		_ = os.Setenv(name, value) // it cannot fail for a constant name without '=' or NUL
	}
}

// programsInstalled reports which of the programs is missing, or nil.
func programsInstalled() error {
	_, brokerErr := findMosquitto()
	_, databaseErr := localpg.FindBin()
	return errors.Join(brokerErr, databaseErr)
}

// findMosquitto returns the path of the broker program. An ordinary user's PATH often leaves out
// the system directories in which packages put it.
func findMosquitto() (string, error) {
	if path, err := exec.LookPath("mosquitto"); err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin", "/opt/local/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, "mosquitto")); err == nil {
			return path, nil
		}
	}
	return "", errors.New("the program mosquitto is not installed")
}
