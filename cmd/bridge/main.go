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
	"strings"
	"syscall"
)

// The exit codes of every command.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2 // wrong usage or configuration
)

func main() {
	if len(os.Args) < 2 || os.Args[1] == "run" {
		slacken()
	}
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
		{"migrate", "[status | --tables]", "applies the migrations of the bridge's own tables, or lists them; --tables also makes the tables of the routes, for a bridge whose role may not", migrateCommand},
		{"check", "[--connect]", "reads the configuration and prints routes, tables and warnings; --connect also talks to broker and database", checkCommand},
		{"map", "--topic T [--payload FILE or -] [--user-property k=v] [--content-type C] [--qos N] [--retain]", "dry run of one message: prints its rows as JSON lines, or why it would become a dead letter", mapCommand},
		{"deadletters", "list [--route R] [--reason X] [--since T] [--limit N] [--all] [--json]", "lists the dead letters that wait, the newest first; --all also those that were replayed", deadLettersCommand},
		{"deadletters", "show ID [--payload]", "prints everything about one; --payload writes nothing but its exact payload", deadLettersCommand},
		{"deadletters", "replay [--route R] [--reason X] [--id ID] [--since T]", "writes those that wait through the routes as they are configured now; may be repeated at will", deadLettersCommand},
		{"deadletters", "purge [--replayed] [--before T] [--id ID] [--route R] [--reason X] [--yes]", "says how many it would delete, and deletes them with --yes", deadLettersCommand},
		{"sessions", "list [--json]", "lists the leased sessions: who holds them and since when", sessionsCommand},
		{"sessions", "drain INDEX [--timeout D] [--force] [--undo]", "retires a session without loss: the running bridges empty it and end it at the broker; --undo puts it back into use", sessionsCommand},
		{"probe", "[--url U]", "asks a running bridge whether it is ready, for container health checks", probeCommand},
		{"version", "", "prints version, commit and Go version", versionCommand},
		{"help", "[env [--markdown] or COMMAND]", "prints the commands, every environment variable, or the flags of a command", helpCommand},
	}
}

// usageError is wrong usage or configuration: exit code 2. An empty text was printed already.
type usageError struct{ text string }

func (e usageError) Error() string { return e.text }

// realMain runs the command that args name and returns the exit code. ctx ends with the first signal.
func realMain(ctx context.Context, args []string, std streams) int {
	name := "run"
	if len(args) > 0 {
		name, args = args[0], args[1:]
	}
	switch name {
	case "-h", "-help", "--help":
		name = "help"
	case "-v", "-version", "--version":
		name = "version"
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
		// The driver gives every address it has tried a line of its own.
		fmt.Fprintln(std.err, "bridge: "+strings.ReplaceAll(err.Error(), "\n\t", " "))
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
	return noCommand(name)
}

// noCommand says which commands there are instead.
func noCommand(name string) error {
	var names []string
	for _, c := range commands() {
		names = append(names, c.name)
	}
	return usageError{fmt.Sprintf("no command %q; there are %s", name, listed(slices.Compact(names), "and"))}
}

// listed joins words as people do.
func listed(words []string, last string) string {
	n := len(words) - 1
	return strings.Join(words[:n], ", ") + " " + last + " " + words[n]
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

// subcommand splits the words behind a command into the word that says what to do, which must be one
// of those given, and the rest.
func subcommand(ctx context.Context, name string, args []string, std streams, words ...string) (word string, rest []string, err error) {
	expected := listed(words, "or")
	switch {
	case len(args) == 0:
		return "", nil, usageError{name + ": expected " + expected + "; see bridge help"}
	case slices.Contains([]string{"-h", "-help", "--help"}, args[0]):
		for i, word := range words { // each has flags of its own, and says the last line, which is told once
			var usage strings.Builder
			if i > 0 {
				usage.WriteString("\n")
			}
			_ = dispatch(ctx, name, []string{word, "--help"}, streams{std.in, &usage, &usage}) // it is flag.ErrHelp
			fmt.Fprint(std.err, strings.TrimSuffix(usage.String(), settingsHint))
		}
		fmt.Fprint(std.err, settingsHint)
		return "", nil, flag.ErrHelp
	case !slices.Contains(words, args[0]):
		return "", nil, usageError{fmt.Sprintf("%s: unexpected argument %q; expected %s", name, args[0], expected)}
	}
	return args[0], args[1:], nil
}

// settingsHint ends the help of every command.
const settingsHint = "\nSettings are environment variables: bridge help env.\n"

// newFlags returns an empty flag set for a command, whose usage says what the list of commands says.
func newFlags(name string) *flag.FlagSet {
	flags := flag.NewFlagSet("bridge "+name, flag.ContinueOnError)
	flags.Usage = func() {
		for _, c := range commands() {
			line := c.name + " " + c.usage
			if c.name == name || strings.HasPrefix(line+" ", name+" ") {
				fmt.Fprintf(flags.Output(), "Usage: bridge %s\n\n    %s\n", strings.TrimSpace(line), c.does)
			}
		}
		some := false
		flags.VisitAll(func(*flag.Flag) { some = true })
		if some {
			fmt.Fprint(flags.Output(), "\nFlags, with one dash or two:\n\n")
			flags.PrintDefaults()
		}
		fmt.Fprint(flags.Output(), settingsHint)
	}
	return flags
}
