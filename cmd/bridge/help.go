package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
)

func helpCommand(ctx context.Context, args []string, std streams) error {
	if len(args) > 0 && slices.ContainsFunc(commands(), func(c command) bool { return c.name == args[0] }) {
		// bridge help sessions drain says what bridge sessions drain --help says, where help is asked for.
		return dispatch(ctx, args[0], append(args[1:], "--help"), streams{std.in, std.out, std.out})
	}
	if len(args) > 0 && args[0] != "env" && !strings.HasPrefix(args[0], "-") {
		return noCommand(args[0])
	}
	flags := newFlags("help")
	markdown := flags.Bool("markdown", false, "print the variables as Markdown tables")
	word, err := parse(flags, args, std, "env")
	if err != nil {
		return err
	}
	switch {
	case word == "" && *markdown:
		return usageError{"help: --markdown goes with bridge help env"}
	case word == "":
		return printCommands(std.out)
	case *markdown:
		return printMarkdown(std.out)
	}
	return printVariables(std.out)
}

func printCommands(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "bridge reads MQTT publications and writes them to PostgreSQL.")
	fmt.Fprintln(w, "\nCommands:")
	for _, c := range commands() {
		fmt.Fprintln(w, "  "+strings.TrimSpace("bridge "+c.name+" "+c.usage))
		fmt.Fprintln(w, "      "+c.does)
	}
	fmt.Fprintln(w, "\nT of the dead letters is a time (RFC 3339) or an age such as 90m, 24h or 7d.")
	fmt.Fprintln(w, "Exit codes: 0 success, 1 failure, 2 wrong usage or configuration.")
	fmt.Fprintln(w, "All configuration is by environment variables: bridge help env.")
	return w.Flush()
}

// routePlaceholder stands for the route's name in the help.
const routePlaceholder = prefix + "_ROUTE_<NAME>"

// group is a part of the variables' help.
type group struct {
	title     string
	variables []variable
}

func groups() []group {
	return []group{
		{"Service", variablesOf(prefix, &config{})},
		{"Per route, <NAME> in upper case", variablesOf(routePlaceholder, &routeConfig{})},
	}
}

// printVariables prints a line per variable: name, type, default and meaning, separated by at least
// two spaces, a dash for no default. Lines that begin with BRIDGE_ are variables and nothing else.
func printVariables(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	for i, g := range groups() {
		if i > 0 {
			fmt.Fprintln(w)
		}
		fmt.Fprintf(w, "# %s\n", g.title)
		for _, v := range g.variables {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", v.name, v.kind(), orDash(v.otherwise()), v.tags.Get("desc"))
		}
		if err := w.Flush(); err != nil { // each group has columns of its own
			return fmt.Errorf("print variables: %w", err)
		}
	}
	return nil
}

// printMarkdown prints the same as tables for the documentation.
func printMarkdown(out io.Writer) error {
	var text strings.Builder
	for i, g := range groups() {
		if i > 0 {
			text.WriteString("\n")
		}
		fmt.Fprintf(&text, "**%s**\n\n| variable | type | default | meaning |\n|---|---|---|---|\n", markdownText(g.title))
		for _, v := range g.variables {
			fmt.Fprintf(&text, "| `%s` | %s | %s | %s |\n", v.name, markdownText(v.kind()), markdownDefault(v), markdownText(v.tags.Get("desc")))
		}
	}
	if _, err := io.WriteString(out, text.String()); err != nil {
		return fmt.Errorf("print variables: %w", err)
	}
	return nil
}

// markdownDefault sets values as code and words as words.
func markdownDefault(v variable) string {
	if value := v.tags.Get("default"); value != "" {
		return "`" + value + "`"
	}
	return markdownText(v.tags.Get("unset"))
}

// markdownText escapes what a table cell would take for markup.
func markdownText(s string) string {
	return strings.NewReplacer("|", `\|`, "<", "&lt;", "*", `\*`, "_", `\_`).Replace(s)
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
