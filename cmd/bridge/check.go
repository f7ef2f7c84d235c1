package main

import (
	"context"
	"fmt"
	"io"
	"slices"
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
		printRoute(std.out, route, cfg.routes.All())
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
// Several routes may share a table: it is printed with the first of them, with the columns of all.
func printRoute(out io.Writer, route *mapping.Route, all []*mapping.Route) {
	table := route.Table
	table.Columns = slices.Clone(table.Columns)
	var names []string
	for _, other := range all {
		if tableName(&other.Table) != tableName(&table) {
			continue
		}
		names = append(names, other.Name)
		for _, c := range other.Table.Columns {
			if !slices.ContainsFunc(table.Columns, func(have mapping.Column) bool { return have.Name == c.Name }) {
				table.Columns = append(table.Columns, c)
			}
		}
	}
	shared := ""
	if len(names) > 1 {
		shared = ", shared by the routes " + strings.Join(names, ", ")
	}
	fmt.Fprintf(out, "-- route %s\n", route.Name)
	fmt.Fprintf(out, "--   filters:   %s\n", strings.Join(route.Filters, " "))
	fmt.Fprintf(out, "--   table:     %s%s\n", tableName(&table), shared)
	kept := "ever"
	if table.Retention > 0 {
		kept = mapping.RetentionText(table.Retention)
	}
	fmt.Fprintf(out, "--   partition: %s, kept for %s\n", table.Partition, kept)
	fmt.Fprintf(out, "--   messages are told apart by %s\n", toldApart(route))
	if names[0] == route.Name {
		for _, statement := range store.DDL(&table) {
			fmt.Fprintln(out, statement+";")
		}
	}
	fmt.Fprintln(out)
}

// toldApart says what makes a message of a route another one, and what follows.
func toldApart(route *mapping.Route) string {
	key := strings.Join(route.KeyExpressions, ", ")
	const equal = "one with equal values makes no second row, whatever else it holds"
	switch {
	case key != "" && slices.Contains(route.Table.KeyColumns, "time"):
		return "KEY (" + key + "), device and TIME: " + equal
	case key != "":
		return "KEY (" + key + ") and device, for ever: " + equal + "; when a counter begins anew, new messages pass for old ones"
	case route.Keyed:
		return "what they hold: neither a redelivery nor a publisher's repetition makes a second row"
	}
	return "their delivery: a redelivery by the broker makes no second row, a publisher's repetition does"
}

// finding is one line of what --connect found out.
type finding struct {
	text string
	kind findingKind
}

type findingKind int

const (
	noted findingKind = iota
	warned
	failed
)

// findings collects what one side said.
type findings []finding

func (f *findings) notef(format string, args ...any) {
	*f = append(*f, finding{fmt.Sprintf(format, args...), noted})
}

func (f *findings) warnf(format string, args ...any) {
	*f = append(*f, finding{fmt.Sprintf(format, args...), warned})
}

func (f *findings) failf(format string, args ...any) {
	*f = append(*f, finding{fmt.Sprintf(format, args...), failed})
}

// report prints findings, warnings and failures on stderr, and says whether there was no failure.
func report(std streams, side string, found findings) bool {
	ok := true
	for _, f := range found {
		f.text = strings.Join(strings.Fields(f.text), " ") // the driver gives every address it has tried a line of its own
		switch f.kind {
		case failed:
			ok = false
			fmt.Fprintf(std.err, "bridge: %s: %s\n", side, f.text)
		case warned:
			fmt.Fprintf(std.err, "warning: %s: %s\n", side, f.text)
		default:
			fmt.Fprintf(std.out, "-- %s: %s\n", side, f.text)
		}
	}
	return ok
}
