// Command bridge reads MQTT publications through shared subscriptions and writes them to PostgreSQL.
// It is configured by environment variables: see bridge help env.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"syscall"
)

// The exit codes of every command.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2 // wrong usage or configuration
)

func main() {
	ctx, stop := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, os.Interrupt)
	go func() {
		<-signals
		stop() // the first signal drains
		<-signals
		fmt.Fprintln(os.Stderr, "bridge: second signal, leaving at once: what is not committed stays with the broker")
		os.Exit(exitFailure)
	}()
	os.Exit(realMain(ctx, os.Args[1:], streams{os.Stdin, os.Stdout, os.Stderr}))
}

// streams are the standard streams.
type streams struct {
	in       io.Reader
	out, err io.Writer
}

// command is one subcommand.
type command struct {
	name  string
	usage string // its arguments
	does  string
	run   func(ctx context.Context, args []string, std streams) error
}

// commands are all there are, in the order of the help.
func commands() []command {
	return []command{
		{"run", "", "the service (default); applies pending migrations first unless BRIDGE_MIGRATE=off", runCommand},
		{"migrate", "[status]", "applies the migrations of the bridge's own tables, or lists them", migrateCommand},
		{"check", "[--connect]", "reads the configuration and prints routes, tables and warnings; --connect also talks to broker and database", checkCommand},
		{"map", "--topic T [--payload FILE or -] [--user-property k=v] [--content-type C] [--qos N] [--retain]", "dry run of one message: prints its rows as JSON lines, or why it would become a dead letter", mapCommand},
		{"probe", "[--url U]", "asks a running bridge whether it is ready, for container health checks", probeCommand},
		{"version", "", "prints version, commit and Go version", versionCommand},
		{"help", "[env [--markdown]]", "prints the commands, or every environment variable", helpCommand},
	}
}

// planned are commands that scripts may try and this version does not have.
var planned = []string{"deadletters", "sessions"}

// usageError is wrong usage or configuration: exit code 2. An empty text was printed already.
type usageError struct{ text string }

func (e usageError) Error() string { return e.text }

// realMain runs the command that args name and returns the exit code. ctx ends with the first signal.
func realMain(ctx context.Context, args []string, std streams) int {
	name := "run"
	if len(args) > 0 {
		name, args = args[0], args[1:]
	}
	if slices.Contains([]string{"-h", "-help", "--help"}, name) {
		name = "help"
	}
	err := dispatch(ctx, name, args, std)
	wrong, found := usageError{}, (*problems)(nil)
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return exitOK
	case errors.As(err, &found):
		fmt.Fprintln(std.err, found)
		return exitUsage
	case errors.As(err, &wrong):
		if wrong.text != "" {
			fmt.Fprintln(std.err, "bridge: "+wrong.text)
		}
		return exitUsage
	case !errors.Is(err, errTold):
		fmt.Fprintln(std.err, "bridge: "+err.Error())
	}
	return exitFailure
}

// errTold is a failure whose reasons are on stderr already.
var errTold = errors.New("told on stderr")

func dispatch(ctx context.Context, name string, args []string, std streams) error {
	all := commands()
	if i := slices.IndexFunc(all, func(c command) bool { return c.name == name }); i >= 0 {
		return all[i].run(ctx, args, std)
	}
	if slices.Contains(planned, name) {
		return usageError{name + " is not in this version"}
	}
	return usageError{fmt.Sprintf("no command %q; see bridge help", name)}
}

// parse parses the flags of a command that takes no other arguments but the words given, and returns
// the word.
func parse(flags *flag.FlagSet, args []string, std streams, words ...string) (string, error) {
	flags.SetOutput(std.err)
	err := flags.Parse(args)
	word := flags.Arg(0)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return "", flag.ErrHelp // printed; no failure
	case err != nil:
		return "", usageError{} // the flag set has printed it
	case word != "" && !slices.Contains(words, word):
		return "", usageError{fmt.Sprintf("%s: unexpected argument %q", flags.Name(), word)}
	case word == "":
		return "", nil
	}
	// Flags may follow the word: bridge help env --markdown.
	rest := flags.Args()[1:]
	if err := flags.Parse(rest); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return "", err
		}
		return "", usageError{}
	}
	if flags.NArg() > 0 {
		return "", usageError{fmt.Sprintf("%s: unexpected argument %q", flags.Name(), flags.Arg(0))}
	}
	return word, nil
}

// newFlags returns an empty flag set for a command.
func newFlags(name string) *flag.FlagSet {
	return flag.NewFlagSet("bridge "+name, flag.ContinueOnError)
}
