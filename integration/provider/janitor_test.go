//go:build unix

package provider

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/client"
	"github.com/testcontainers/testcontainers-go"
)

// victimVariable makes TestVictim the process that TestNothingOutlivesAKilledTest kills.
const victimVariable = "BRIDGE_TEST_VICTIM"

// TestVictim, when told to, starts servers and waits to be killed. Otherwise it makes sure that
// nobody told it by accident.
func TestVictim(t *testing.T) {
	if os.Getenv(victimVariable) == "" {
		return
	}
	b := StartBroker(t, BrokerConfig{})
	d := StartDatabase(t, DatabaseConfig{})
	s, err := open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("victim %s %s %s %s\n", b.Addr(""), d.AdminURL(), s.label, s.dir)
	if err := d.Pause(t.Context()); err != nil { // the worst case: a frozen server cannot notice
		t.Fatal(err)
	}
	fmt.Println("paused")
	select {}
}

func TestNothingOutlivesAKilledTest(t *testing.T) {
	s, err := open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestVictim$", "-test.v")
	cmd.Env = append(os.Environ(), victimVariable+"=1", "BRIDGE_TEST_PROVIDER="+string(s.kind))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var broker, database, label, dir string
	lines := bufio.NewScanner(out)
	for lines.Scan() && !strings.HasPrefix(lines.Text(), "paused") {
		if words, ok := strings.CutPrefix(lines.Text(), "victim "); ok {
			if _, err := fmt.Sscan(words, &broker, &database, &label, &dir); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	if dir == "" {
		t.Fatal("the victim did not start its servers")
	}

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var left error
	err = poll(ctx, 100*time.Millisecond, func() (bool, error) {
		left = leftovers(ctx, broker, database, label, dir)
		return left == nil, nil
	})
	if err != nil {
		t.Errorf("%v: %v", err, left)
	}
}

// leftovers tells what of another test binary is still there.
func leftovers(ctx context.Context, broker, database, label, dir string) error {
	try, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if mqttAnswers(try, broker) == nil {
		return errors.New("the broker still answers")
	}
	if _, err := query(try, database, "select 'up'"); err == nil {
		return errors.New("the database still answers")
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		return fmt.Errorf("the folder %s is still there (%w)", dir, err)
	}
	if pids := processesIn(dir); len(pids) > 0 {
		return fmt.Errorf("the processes %v are still there", pids)
	}
	if current.kind == Processes {
		return nil
	}
	docker, err := testcontainers.NewDockerClientWithOpts(ctx)
	if err != nil {
		return err
	}
	list, err := docker.ContainerList(ctx, client.ContainerListOptions{
		All: true, Filters: client.Filters{}.Add("label", sessionLabel+"="+label),
	})
	if err != nil {
		return err
	}
	if len(list.Items) > 0 {
		return fmt.Errorf("%d containers are still there", len(list.Items))
	}
	return nil
}
