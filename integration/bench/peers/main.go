// Peers is Telegraf with the three plugins that the benchmark needs, for `make bench-peers`: the MQTT
// consumer, the parser of JSON and the output to PostgreSQL. It takes configuration files as its
// arguments and is otherwise what the telegraf command is: the same agent, buffers and plugins, from its
// Go module at the version in go.mod.
//
// Telegraf is what most people would use in the place of the bridge. It is compared as it comes
// (defaults.conf) and as good as settings make it (tuned.conf).
//
// It stands in a module of its own because its dependencies are not to become the bridge's. Nothing of it
// is shipped or copied: it is fetched and built where the benchmark runs. Telegraf is under the MIT
// licence, copyright InfluxData Inc.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/influxdata/telegraf/agent"
	"github.com/influxdata/telegraf/config"
	"github.com/influxdata/telegraf/logger"
	_ "github.com/influxdata/telegraf/plugins/inputs/mqtt_consumer"
	_ "github.com/influxdata/telegraf/plugins/outputs/postgresql"
	_ "github.com/influxdata/telegraf/plugins/parsers/json"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// run runs the agent until it is told to end.
func run(files []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	c, err := load(files)
	if err != nil {
		return err
	}
	if err := logger.SetupLogging(&logger.Config{Quiet: c.Agent.Quiet}); err != nil {
		return fmt.Errorf("set up logging: %w", err)
	}
	if err := agent.NewAgent(c).Run(ctx); err != nil {
		return fmt.Errorf("run the agent: %w", err)
	}
	return nil
}

func load(files []string) (*config.Config, error) {
	c := config.NewConfig()
	if err := c.LoadAll(files...); err != nil {
		return nil, fmt.Errorf("load %v: %w", files, err)
	}
	return c, nil
}
