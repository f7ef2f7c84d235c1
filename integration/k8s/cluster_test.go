//go:build kubernetes

package k8s

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const (
	root = "../.."
	dev  = "bridge-dev" // the namespace of overlays/dev

	// patience is how long a test waits for what must happen.
	patience = 3 * time.Minute
)

// cluster is where the tests run.
type cluster struct {
	own       bool     // brought up by us
	kubectl   []string // how to call it
	namespace string
}

// in is the same cluster, seen from another namespace.
func (c *cluster) in(namespace string) *cluster {
	other := *c
	other.namespace = namespace
	return &other
}

// openCluster uses the cluster of KUBECONFIG, or brings one up for the test.
func openCluster(t *testing.T) *cluster {
	t.Helper()
	if os.Getenv("KUBECONFIG") != "" {
		return &cluster{kubectl: []string{"kubectl"}, namespace: dev}
	}
	script, err := filepath.Abs("../setup/kubernetes.sh")
	must(t, err)
	c := &cluster{own: true, kubectl: []string{script, "kubectl"}, namespace: dev}
	run(t, script, "build")
	t.Cleanup(func() {
		if t.Failed() && os.Getenv("CI") == "" {
			t.Logf("the cluster is left as it is: %s kubectl ..., and %[1]s down in the end", script)
			return
		}
		if out, err := exec.Command(script, "down").CombinedOutput(); err != nil {
			t.Errorf("end the cluster: %v\n%s", err, out)
		}
	})
	run(t, script, "up")
	return c
}

// load brings images of the Docker engine to the nodes.
func (c *cluster) load(t *testing.T, images ...string) {
	t.Helper()
	switch command := os.Getenv("BRIDGE_TEST_LOAD_IMAGES"); {
	case c.own:
		run(t, "../setup/kubernetes.sh", append([]string{"load"}, images...)...)
	case command != "":
		run(t, "sh", append([]string{"-c", command + ` "$@"`, "load"}, images...)...)
	default:
		t.Fatal("BRIDGE_TEST_LOAD_IMAGES has to say how images get to the nodes of this cluster: kind load docker-image, for example")
	}
}

// try runs kubectl once.
func (c *cluster) try(ctx context.Context, stdin string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, c.kubectl[0], append(append([]string{}, c.kubectl[1:]...), args...)...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("kubectl %s: %w: %s%s", strings.Join(args, " "), err, out.String(), errs.String())
	}
	return out.String(), nil
}

// do runs kubectl in the namespace, and must succeed.
func (c *cluster) do(t *testing.T, args ...string) string {
	t.Helper()
	out, err := c.try(t.Context(), "", append([]string{"-n", c.namespace}, args...)...)
	must(t, err)
	return out
}

// sql asks the database of the dev overlay. Its pod may be gone at the moment.
func (c *cluster) sql(ctx context.Context, query string) (string, error) {
	out, err := c.try(ctx, "", "-n", dev, "exec", "postgres-0", "--", "psql", "-U", "telemetry", "-qAtXc", query)
	return strings.TrimSpace(out), err
}

// pod is what the tests look at.
type pod struct {
	Metadata struct {
		Name              string  `json:"name"`
		DeletionTimestamp *string `json:"deletionTimestamp"`
	} `json:"metadata"`
	Spec struct {
		NodeName string `json:"nodeName"`
	} `json:"spec"`
	Status struct {
		ContainerStatuses []struct {
			ContainerID  string `json:"containerID"`
			Ready        bool   `json:"ready"`
			RestartCount int    `json:"restartCount"`
		} `json:"containerStatuses"`
	} `json:"status"`
}

func (p *pod) ready() bool {
	s := p.Status.ContainerStatuses
	return p.Metadata.DeletionTimestamp == nil && len(s) == 1 && s[0].Ready
}

func (p *pod) restarts() int {
	if s := p.Status.ContainerStatuses; len(s) == 1 {
		return s[0].RestartCount
	}
	return 0
}

// bridges are the pods of the bridge.
func (c *cluster) bridges(t *testing.T) []pod {
	t.Helper()
	var list struct {
		Items []pod `json:"items"`
	}
	must(t, json.Unmarshal([]byte(c.do(t, "get", "pods", "-l", "app.kubernetes.io/name=bridge", "-o", "json")), &list))
	return list.Items
}

func readyOnes(pods []pod) (ready []pod) {
	for _, p := range pods {
		if p.ready() {
			ready = append(ready, p)
		}
	}
	return ready
}

// awaitBridges waits until exactly n pods of the bridge are there, and ready.
func (c *cluster) awaitBridges(t *testing.T, n int) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d bridges are ready", n), func() (bool, string) {
		pods := c.bridges(t)
		ready := len(readyOnes(pods))
		return ready == n && len(pods) == n, fmt.Sprintf("%d of %d are", ready, len(pods))
	})
}

func (c *cluster) awaitRollout(t *testing.T) {
	t.Helper()
	c.do(t, "rollout", "status", "deployment/bridge", "--timeout", patience.String())
}

// run runs a program to its end, which must be a good one.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out.String(), errs.String())
	}
	return strings.TrimSpace(out.String())
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually waits until look is satisfied.
func eventually(t *testing.T, what string, look func() (done bool, state string)) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		done, state := look()
		if done {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain until %s: %s", what, state)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// unlessDifferent is nil for the exit code 1 of kubectl diff, whose output says what differs.
func unlessDifferent(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 1 {
		return nil
	}
	return err
}
