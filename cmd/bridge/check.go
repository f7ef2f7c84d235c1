package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/mqttpg/bridge/mapping"
	"github.com/mqttpg/bridge/store"
)

// checkCommand prints what the configuration amounts to, and with --connect whether broker and
// database go along with it. It changes nothing.
func checkCommand(ctx context.Context, args []string, std streams) error {
	flags := newFlags("check")
	connect := flags.Bool("connect", false, "also talk to broker and database")
	if _, err := parse(flags, args, std); err != nil {
		return err
	}
	cfg, err := loadConfig()
	if err != nil {
		return err
	}
	for _, route := range cfg.routes.All() {
		printRoute(std.out, route)
	}
	fmt.Fprintln(std.out, "-- subscriptions")
	for _, filter := range cfg.routes.Filters() {
		if cfg.MQTT.Mode.value == "shared" {
			filter = "$share/" + cfg.MQTT.ShareName.value + "/" + filter
		}
		fmt.Fprintf(std.out, "--   %s QoS %d\n", filter, cfg.MQTT.QoS.value)
	}
	for _, warning := range cfg.warnings {
		fmt.Fprintln(std.err, "warning: "+warning)
	}
	if !*connect {
		return nil
	}
	brokerOK := report(std, "broker", cfg.checkBroker(ctx))
	databaseOK := report(std, "database", cfg.checkDatabase(ctx))
	if !brokerOK || !databaseOK {
		return errTold
	}
	return nil
}

// printRoute prints a route as comments and its table as SQL, so that the output can be fed to psql.
func printRoute(out io.Writer, route *mapping.Route) {
	fmt.Fprintf(out, "-- route %s\n", route.Name)
	fmt.Fprintf(out, "--   filters:   %s\n", strings.Join(route.Filters, " "))
	fmt.Fprintf(out, "--   table:     %s\n", tableName(&route.Table))
	fmt.Fprintf(out, "--   messages are told apart by %s\n", map[bool]string{
		true: "what they hold: a second delivery or a publisher's repetition makes no second row", false: "their delivery",
	}[route.Keyed])
	for _, statement := range store.DDL(&route.Table) {
		fmt.Fprintln(out, statement+";")
	}
	fmt.Fprintln(out)
}

// finding is one line of what --connect found out.
type finding struct {
	text   string
	failed bool
}

// findings collects what one side said.
type findings []finding

func (f *findings) notef(format string, args ...any) {
	*f = append(*f, finding{text: fmt.Sprintf(format, args...)})
}

func (f *findings) failf(format string, args ...any) {
	*f = append(*f, finding{text: fmt.Sprintf(format, args...), failed: true})
}

// report prints findings, failures on stderr, and says whether there was none.
func report(std streams, side string, found findings) bool {
	ok := true
	for _, f := range found {
		if f.failed {
			ok = false
			fmt.Fprintf(std.err, "bridge: %s: %s\n", side, f.text)
			continue
		}
		fmt.Fprintf(std.out, "-- %s: %s\n", side, f.text)
	}
	return ok
}
