package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/mqttpg/bridge/mapping"
)

// mapCommand is a dry run of one message: no broker, no database.
func mapCommand(_ context.Context, args []string, std streams) error {
	flags := newFlags("map")
	message := &mapping.Message{ReceivedAt: time.Now().UTC().Truncate(time.Microsecond)}
	flags.StringVar(&message.Topic, "topic", "", "`topic` name of the message, without wildcards (required)")
	payload := flags.String("payload", "", "`file` that holds the payload, - for standard input (default: empty payload)")
	flags.StringVar(&message.ContentType, "content-type", "", "content `type` of the message")
	flags.BoolVar(&message.Retain, "retain", false, "RETAIN flag of the message")
	qos := flags.Uint("qos", 1, "`QoS` of the message: 0, 1 or 2")
	flags.Func("user-property", "User Property `k=v`; may be given several times", func(s string) error {
		name, value, ok := strings.Cut(s, "=")
		if !ok {
			return fmt.Errorf("expected k=v")
		}
		message.UserProperties = append(message.UserProperties, mapping.UserProperty{Name: name, Value: value})
		return nil
	})
	if _, err := parse(flags, args, std); err != nil {
		return err
	}
	switch {
	case message.Topic == "" || strings.ContainsAny(message.Topic, "+#\x00"): // [MQTT-3.3.2-2]
		return usageError{"map: --topic: expected a topic name without wildcards"}
	case *qos > 2:
		return usageError{"map: --qos: expected 0, 1 or 2"}
	}
	message.QoS = byte(*qos)
	cfg, err := loadConfig()
	if err != nil {
		return err
	}
	if *payload == "" && offersInput(std.in) {
		fmt.Fprintln(std.err, "bridge: the payload is empty and standard input is not read: --payload - takes it from there")
	}
	if message.Payload, err = readPayload(*payload, std.in); err != nil {
		return err
	}
	return printOutcomes(cfg.routes.Map(message, nil), message.Topic, std)
}

// offersInput says that somebody has put something before standard input, by a pipe or from a file.
func offersInput(stdin io.Reader) bool {
	file, ok := stdin.(*os.File)
	if !ok {
		return false
	}
	info, err := file.Stat()
	switch {
	case err != nil:
		return false
	case info.Mode().IsRegular():
		return info.Size() > 0
	}
	return info.Mode()&os.ModeNamedPipe != 0 && holdsBytes(file)
}

func readPayload(path string, stdin io.Reader) ([]byte, error) {
	if path == "" {
		return nil, nil
	}
	read := func() ([]byte, error) { return os.ReadFile(path) } //nolint:gosec // the operator names the file
	if path == "-" {
		read = func() ([]byte, error) { return io.ReadAll(stdin) }
	}
	b, err := read()
	if err != nil {
		return nil, fmt.Errorf("read the payload: %w", err)
	}
	return b, nil
}

// mappedRow is one line of the output.
type mappedRow struct {
	Route string          `json:"route"`
	Table string          `json:"table"`
	Row   json.RawMessage `json:"row"`
}

// printOutcomes prints rows on stdout and everything else on stderr. A message that would become a
// dead letter is a failure.
func printOutcomes(outcomes []mapping.Outcome, topic string, std streams) error {
	var failed error
	if len(outcomes) == 0 {
		fmt.Fprintf(std.err, "bridge: no route matches topic %s: dead letter with reason %s\n", topic, mapping.ReasonNoRoute)
		failed = errTold
	}
	lines := json.NewEncoder(std.out)
	lines.SetEscapeHTML(false)
	for i := range outcomes {
		o := &outcomes[i]
		switch {
		case o.Rejection != nil:
			fmt.Fprintf(std.err, "bridge: route %s: dead letter with reason %s: %s\n", o.Route.Name, o.Rejection.Reason, o.Rejection.Detail)
			failed = errTold
		case o.Skip != "":
			fmt.Fprintf(std.err, "bridge: route %s: skipped: %s\n", o.Route.Name, o.Skip)
		}
		for j := range o.Rows {
			row, err := o.Route.Table.JSON(&o.Rows[j])
			if err != nil {
				return err
			}
			if err := lines.Encode(mappedRow{o.Route.Name, tableName(&o.Route.Table), row}); err != nil {
				return fmt.Errorf("print row: %w", err)
			}
		}
	}
	return failed
}

// tableName is the table as the configuration names it.
func tableName(t *mapping.Table) string {
	if t.Schema == "" {
		return t.Name
	}
	return t.Schema + "." + t.Name
}
