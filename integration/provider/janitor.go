//go:build unix

package provider

import (
	"context"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/moby/moby/client"
	"github.com/testcontainers/testcontainers-go"
)

const (
	// janitorVariable turns a test binary into the janitor of another run of it; its value is the
	// provider, the label and the folder.
	janitorVariable = "BRIDGE_TEST_JANITOR"

	// sessionLabel marks the containers of one test binary.
	sessionLabel = "org.mqttpg.bridge.test-session"
)

// init is the janitor's whole life. It sits here and not in a TestMain, so that every test binary
// that uses this package has one without asking.
func init() { //nolint:gochecknoinits // see above
	if task := os.Getenv(janitorVariable); task != "" {
		os.Exit(janitor(task))
	}
}

// janitor waits for the test binary's end and cleans up. It returns the exit code.
func janitor(task string) int {
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	_, _ = io.Copy(io.Discard, os.Stdin) // until the test binary closes it, or dies

	fields := strings.SplitN(task, " ", 3)
	if len(fields) != 3 {
		return 2
	}
	if Kind(fields[0]) == Containers {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if engineAnswers(ctx) == nil {
			removeContainers(ctx, fields[1])
		}
	}
	if sweep(fields[2]) != nil {
		return 1
	}
	return 0
}

// sweep ends the processes that work in the folder and removes it. The kernel has told them of
// their parent's death; this is for those who cannot listen, as a server that a test had paused.
func sweep(dir string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return poll(ctx, 50*time.Millisecond, func() (bool, error) {
		for _, pid := range processesIn(dir) {
			_ = syscall.Kill(pid, syscall.SIGKILL) // gone is fine
		}
		// What still ends may still write: there is another round then.
		return os.RemoveAll(dir) == nil && len(processesIn(dir)) == 0, nil
	})
}

// removeContainers removes every container with the label, running, paused or stopped. It goes on
// after errors: there is nobody left to tell.
func removeContainers(ctx context.Context, label string) {
	docker, err := testcontainers.NewDockerClientWithOpts(ctx)
	if err != nil {
		return
	}
	list, err := docker.ContainerList(ctx, client.ContainerListOptions{
		All:     true,
		Filters: client.Filters{}.Add("label", sessionLabel+"="+label),
	})
	if err != nil {
		return
	}
	for _, c := range list.Items {
		// A frozen process cannot die. Of a container that is not paused this is an error.
		_, _ = docker.ContainerUnpause(ctx, c.ID, client.ContainerUnpauseOptions{})
		_, _ = docker.ContainerRemove(ctx, c.ID, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true})
	}
}
