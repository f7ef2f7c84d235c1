//go:build unix

package provider

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
	"github.com/testcontainers/testcontainers-go"
)

// containerMachine is a server in a container.
type containerMachine struct {
	// run makes and starts the container; it is called once, by the first start.
	run       func(ctx context.Context, options ...testcontainers.ContainerCustomizer) (testcontainers.Container, error)
	label     string      // of the session
	published map[int]int // port in the container -> loopback port
	container testcontainers.Container
}

func (m *containerMachine) start(ctx context.Context) error {
	if m.container != nil {
		return m.container.Start(ctx)
	}
	c, err := m.run(ctx, m.options()...)
	if c != nil { // also beside an error: the container may be there and has to be removed
		m.container = c
	}
	return err
}

// options are what every container of ours needs. The ports are fixed, because an engine publishes
// to another one at every start when it may choose.
func (m *containerMachine) options() []testcontainers.ContainerCustomizer {
	bindings := network.PortMap{}
	var exposed []string
	for inside, outside := range m.published {
		exposed = append(exposed, fmt.Sprintf("%d/tcp", inside))
		bindings[network.MustParsePort(exposed[len(exposed)-1])] = []network.PortBinding{
			{HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: strconv.Itoa(outside)},
		}
	}
	return []testcontainers.ContainerCustomizer{
		testcontainers.WithExposedPorts(exposed...),
		testcontainers.WithLabels(map[string]string{sessionLabel: m.label}),
		testcontainers.WithHostConfigModifier(func(host *container.HostConfig) { host.PortBindings = bindings }),
	}
}

func (m *containerMachine) stop(ctx context.Context) error {
	patience := 30 * time.Second // the engine kills it after that, which would be no stop
	if err := m.container.Stop(ctx, &patience); err != nil {
		return err
	}
	state, err := m.container.State(ctx)
	if err != nil {
		return err
	}
	if state.ExitCode == 137 {
		return fmt.Errorf("killed, as it was still running after %v", patience)
	}
	return nil
}

func (m *containerMachine) kill(ctx context.Context) error {
	docker, err := testcontainers.NewDockerClientWithOpts(ctx)
	if err != nil {
		return err
	}
	if _, err := docker.ContainerKill(ctx, m.container.GetContainerID(), client.ContainerKillOptions{Signal: "KILL"}); err != nil {
		return err
	}
	return poll(ctx, 10*time.Millisecond, func() (bool, error) {
		state, err := m.container.State(ctx)
		if err != nil {
			return false, err
		}
		return !state.Running, nil
	})
}

func (m *containerMachine) pause(ctx context.Context) error {
	docker, err := testcontainers.NewDockerClientWithOpts(ctx)
	if err != nil {
		return err
	}
	_, err = docker.ContainerPause(ctx, m.container.GetContainerID(), client.ContainerPauseOptions{})
	return err
}

func (m *containerMachine) resume(ctx context.Context) error {
	docker, err := testcontainers.NewDockerClientWithOpts(ctx)
	if err != nil {
		return err
	}
	_, err = docker.ContainerUnpause(ctx, m.container.GetContainerID(), client.ContainerUnpauseOptions{})
	return err
}

func (m *containerMachine) logs(ctx context.Context) (string, error) {
	if m.container == nil {
		return "", errors.New("there is no container")
	}
	log, err := m.container.Logs(ctx)
	if err != nil {
		return "", err
	}
	data, err := io.ReadAll(log)
	return string(data), errors.Join(err, log.Close())
}

// pid is unknown: the process lives in another name space.
func (m *containerMachine) pid() int { return 0 }

func (m *containerMachine) remove(ctx context.Context) error {
	if m.container == nil {
		return nil
	}
	docker, err := testcontainers.NewDockerClientWithOpts(ctx)
	if err != nil {
		return err
	}
	id := m.container.GetContainerID()
	// A frozen process cannot die. Of a container that is not paused this is an error.
	_, _ = docker.ContainerUnpause(ctx, id, client.ContainerUnpauseOptions{})
	_, err = docker.ContainerRemove(ctx, id, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true})
	return err
}
