package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/mqttpg/bridge/integration/localpg"
	"go.uber.org/goleak"
)

// server is the PostgreSQL that all tests share; each makes a database of its own.
var server *localpg.Server

// asProgram makes the test binary be the program itself, for tests that need a process.
const asProgram = "TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
	}
	os.Exit(withServer(m))
}

func withServer(m *testing.M) int {
	var err error
	server, err = localpg.Start(context.Background(), localpg.Config{Settings: map[string]string{"fsync": "off", "shared_buffers": "16MB"}})
	if err != nil {
		fmt.Fprintln(os.Stderr, "bridge: tests need PostgreSQL:", err)
		return 1
	}
	code := m.Run()
	if err := server.Stop(); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// environment makes the process's environment hold no variable of the bridge but those given, as
// "NAME=value", until the test ends.
func environment(t *testing.T, entries ...string) {
	t.Helper()
	for _, entry := range os.Environ() {
		name, value, _ := strings.Cut(entry, "=")
		if strings.HasPrefix(name, "BRIDGE_") || strings.HasPrefix(name, "PG") {
			t.Setenv(name, value) // so that it comes back
			if err := os.Unsetenv(name); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, entry := range entries {
		name, value, ok := strings.Cut(entry, "=")
		if !ok {
			t.Fatalf("%q is no NAME=value", entry)
		}
		t.Setenv(name, value)
	}
}

// bridge runs a command to its end.
func bridge(t *testing.T, stdin string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, err bytes.Buffer
	code = realMain(context.Background(), args, streams{strings.NewReader(stdin), &out, &err})
	return code, out.String(), err.String()
}

func TestUsage(t *testing.T) {
	environment(t)
	for _, c := range []struct {
		args   string
		code   int
		stdout string // a part of it; empty: nothing is printed
		stderr string
	}{
		{"help", 0, "bridge check [--connect]", ""},
		{"--help", 0, "bridge check [--connect]", ""},
		{"-h", 0, "bridge check [--connect]", ""},
		{"help env", 0, "BRIDGE_MQTT_URLS", ""},
		{"help env --markdown", 0, "| `BRIDGE_MQTT_URLS` |", ""},
		{"help --markdown env", 0, "| `BRIDGE_MQTT_URLS` |", ""},
		{"help --markdown", 2, "", "goes with bridge help env"},
		{"help everything", 2, "", "bridge: no command \"everything\"; there are run, migrate, check, map, deadletters, sessions, probe, version and help\n"},
		{"help deadletters", 0, "Usage: bridge deadletters replay [--route R]", ""},
		{"help deadletters", 0, "\n  -limit number\n", ""},
		{"help map", 0, "Usage: bridge map --topic T", ""},
		{"help sessions", 0, "Usage: bridge sessions list [--json]\n", ""},
		{"help sessions", 0, "\n  -undo\n", ""},
		{"help sessions drain", 0, "Usage: bridge sessions drain INDEX", ""},
		{"help run", 0, "Usage: bridge run\n", ""},
		{"help help", 0, "Usage: bridge help", ""},
		{"help map everything", 2, "", `unexpected argument "everything"`},
		{"help env more", 2, "", `unexpected argument "more"`},
		{"version", 0, "go1.", ""},
		{"--version", 0, "go1.", ""},
		{"-v", 0, "go1.", ""},
		{"-version", 0, "go1.", ""},
		{"run --help", 0, "", "Usage: bridge run\n\n    the service"},
		{"check --help", 0, "", "Usage: bridge check [--connect]\n\n    reads the configuration"},
		{"migrate -h", 0, "", "Usage: bridge migrate [status | --tables]\n"},
		{"probe --help", 0, "", "\n\nFlags, with one dash or two:\n\n  -url URL\n"},
		{"version --help", 0, "", "Usage: bridge version\n\n    prints version"},
		{"deadletters show --help", 0, "", "Usage: bridge deadletters show ID [--payload]\n"},
		{"version now", 2, "", `unexpected argument "now"`},
		{"map -h", 0, "", "-user-property"},
		{"help env -h", 0, "", "-markdown"},
		{"help env --nonsense", 2, "", "nonsense"},
		{"run fast", 2, "", `unexpected argument "fast"`},
		{"run --fast", 2, "", "fast"},
		{"frobnicate", 2, "", "no command \"frobnicate\"; there are run, migrate,"},
		{"deadletters", 2, "", "deadletters: expected list, show, replay or purge"},
		{"deadletters --help", 0, "", "Usage: bridge deadletters purge [--replayed]"},
		{"deadletters bury", 2, "", `unexpected argument "bury"`},
		{"deadletters list all", 2, "", `unexpected argument "all"`},
		{"deadletters list --limit -1", 2, "", "--limit"},
		{"deadletters list --since yesterday", 2, "", "expected a time such as"},
		{"deadletters list --since -1h", 2, "", "expected a time such as"},
		{"deadletters list -h", 0, "", "-reason"},
		{"deadletters show", 2, "", "deadletters show: expected the id of a dead letter"},
		{"deadletters show 17", 2, "", `"17"`},
		{"deadletters show --payload", 2, "", "deadletters show: expected the id of a dead letter"},
		{"deadletters replay --id 17", 2, "", "expected the id of a dead letter"},
		{"deadletters replay now", 2, "", `unexpected argument "now"`},
		{"deadletters purge", 2, "", "deadletters purge: expected --replayed, --before, --id, --route or --reason"},
		{"deadletters purge --yes", 2, "", "deadletters purge: expected --replayed, --before, --id, --route or --reason"},
		{"sessions", 2, "", "sessions: expected list or drain"},
		{"sessions list 0", 2, "", `unexpected argument "0"`},
		{"sessions drain", 2, "", `expected the index of a session, as bridge sessions list shows it; got ""`},
		{"sessions drain first", 2, "", `got "first"`},
		{"sessions drain 1.5", 2, "", `got "1.5"`},
		{"sessions drain 99999999999", 2, "", `got "99999999999"`},
		{"sessions drain 1 2", 2, "", `unexpected argument "2"`},
		{"sessions drain 1 --timeout 0s", 2, "", "--timeout: expected more than 0s"},
		{"sessions drain 1 --timeout 5", 2, "", `invalid value "5" for flag -timeout: expected a duration such as`},
		{"sessions drain --undo --force 1", 2, "", "only one of --undo and --force"},
		{"sessions drain -h", 0, "", "-undo"},
		{"migrate sideways", 2, "", `unexpected argument "sideways"`},
		{"check --nonsense", 2, "", "nonsense"},
		{"map", 2, "", "--topic"},
		{"map --topic a/+", 2, "", "without wildcards"},
		{"map --topic a --qos 3", 2, "", "--qos"},
		{"map --topic a --user-property k", 2, "", "expected k=v"},
		{"probe --url nonsense", 2, "", "--url"},
	} {
		t.Run(c.args, func(t *testing.T) {
			code, stdout, stderr := bridge(t, "", strings.Fields(c.args)...)
			if code != c.code || !strings.Contains(stdout, c.stdout) || !strings.Contains(stderr, c.stderr) ||
				c.stdout == "" && stdout != "" || c.stderr == "" && stderr != "" {
				t.Errorf("exit %d\nstdout: %s\nstderr: %s\nwant %d, %q, %q", code, stdout, stderr, c.code, c.stdout, c.stderr)
			}
		})
	}
}

// TestHelpIsTheListOfCommands catches a command that is dispatched but not documented, and one that
// the contract names and the program has forgotten.
func TestHelpIsTheListOfCommands(t *testing.T) {
	environment(t)
	_, help, _ := bridge(t, "", "help")
	for _, name := range []string{"run", "migrate", "check", "map", "deadletters list", "deadletters show", "deadletters replay", "deadletters purge", "sessions list", "probe", "version", "help"} {
		if !strings.Contains(help, "\n  bridge "+name) {
			t.Errorf("help lacks %s:\n%s", name, help)
		}
	}
}

// localpgStart starts a server that the test may stop and pause.
func localpgStart(t *testing.T) (*localpg.Server, error) {
	t.Helper()
	own, err := localpg.Start(context.Background(), localpg.Config{Settings: map[string]string{"fsync": "off", "shared_buffers": "16MB"}})
	if err == nil {
		t.Cleanup(func() {
			_ = own.Resume()
			if err := own.Stop(); err != nil {
				t.Error(err)
			}
		})
	}
	return own, err
}
