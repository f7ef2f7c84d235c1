package main

import (
	"testing"
	"time"

	"github.com/influxdata/telegraf/plugins/inputs/mqtt_consumer"
	"github.com/influxdata/telegraf/plugins/outputs/postgresql"
)

// TestConfigurations has Telegraf read the files. It refuses what it does not know.
func TestConfigurations(t *testing.T) {
	t.Setenv("BENCH_BROKER", "tcp://127.0.0.1:1")
	t.Setenv("BENCH_CLIENT_ID", "someone")
	t.Setenv("BENCH_TABLE", "peer")
	t.Setenv("BENCH_FLUSH", "200ms")
	t.Setenv("BENCH_DATABASE", "postgres://127.0.0.1:2/nobody")
	for _, test := range []struct {
		file               string
		batch, undelivered int
		flush              time.Duration
		templates          int
	}{
		{"defaults.conf", 0, 1000, 10 * time.Second, 1}, // 0 is its default, 1000
		{"tuned.conf", 5000, 10000, 200 * time.Millisecond, 2},
	} {
		t.Run(test.file, func(t *testing.T) {
			c, err := load([]string{test.file})
			if err != nil {
				t.Fatal(err)
			}
			if len(c.Inputs) != 1 || len(c.Outputs) != 1 {
				t.Fatalf("%d inputs, %d outputs", len(c.Inputs), len(c.Outputs))
			}
			in := c.Inputs[0].Input.(*mqtt_consumer.MQTTConsumer)
			if in.QoS != 1 || !in.PersistentSession || in.ClientID != "someone" || in.Servers[0] != "tcp://127.0.0.1:1" {
				t.Errorf("input %+v", in)
			}
			if in.MaxUndeliveredMessages != test.undelivered || c.Agent.MetricBatchSize != test.batch {
				t.Errorf("%d undelivered, batches of %d", in.MaxUndeliveredMessages, c.Agent.MetricBatchSize)
			}
			if got := time.Duration(c.Agent.FlushInterval); got != test.flush {
				t.Errorf("flushes every %v", got)
			}
			out := c.Outputs[0].Output.(*postgresql.Postgresql)
			if len(out.CreateTemplates) != test.templates {
				t.Errorf("%d statements make the table", len(out.CreateTemplates))
			}
		})
	}
	if _, err := load([]string{"none.conf"}); err == nil {
		t.Error("a file that is not there was read")
	}
}
