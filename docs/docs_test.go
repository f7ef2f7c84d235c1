//go:build unix

// Package docs holds no code: its tests run what the documents show.
package docs

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/mqttpg/bridge/integration/localpg"
	"github.com/mqttpg/bridge/mapping"
	"github.com/mqttpg/bridge/migrations"
	"github.com/mqttpg/bridge/store"
)

// update rewrites the documents with what the commands answer today: UPDATE_DOCS=1 go test ./docs
var update = os.Getenv("UPDATE_DOCS") != ""

// bridgeDir is the folder of the bridge binary that the examples call.
var bridgeDir string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "bridge-docs-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer func() { _ = os.RemoveAll(dir) }()
		build := exec.Command("go", "build", "-o", filepath.Join(dir, "bridge"), "github.com/mqttpg/bridge/cmd/bridge")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build the bridge: %v\n%s", err, out)
			return 1
		}
		bridgeDir = dir
		return m.Run()
	}())
}

// environment has nothing of the caller's configuration.
func environment() []string {
	return []string{"PATH=" + bridgeDir + ":" + os.Getenv("PATH"), "HOME=" + bridgeDir, "LC_ALL=C.UTF-8"}
}

// The examples of these documents are shell sessions: lines behind "$ " are typed, lines behind
// "> " continue them, and the rest is the answer, in which … stands for what differs every time.
func TestExamples(t *testing.T) {
	for _, name := range []string{"../README.md", "configuration.md", "delivery.md", "operations.md"} {
		t.Run(name, func(t *testing.T) {
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			blocks := 0
			fresh := eachBlock(string(text), "console", func(line int, block string) string {
				blocks++
				return session(t, fmt.Sprintf("%s:%d", name, line), block)
			})
			if name == "configuration.md" && blocks < 8 {
				t.Errorf("%d examples in %s: the pattern that finds them is broken", blocks, name)
			}
			if update && fresh != string(text) {
				if err := os.WriteFile(name, []byte(fresh), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// eachBlock calls do for every fenced block of a language and puts its result in the block's place.
func eachBlock(text, language string, do func(line int, block string) string) string {
	var out, block strings.Builder
	inside, other, start := false, false, 0
	number := 0
	for line := range strings.Lines(text) {
		number++
		switch {
		case inside && strings.HasPrefix(line, "```"):
			out.WriteString(do(start, block.String()))
			out.WriteString(line)
			inside = false
		case inside:
			block.WriteString(line)
		case strings.HasPrefix(line, "```"):
			out.WriteString(line)
			if !other && strings.TrimSpace(line) == "```"+language {
				inside, start = true, number+1
				block.Reset()
			} else {
				other = !other
			}
		default:
			out.WriteString(line)
		}
	}
	return out.String()
}

type step struct{ typed, command, answer string }

func steps(block string) []step {
	var all []step
	for line := range strings.Lines(block) {
		if text, ok := strings.CutPrefix(line, "$ "); ok {
			all = append(all, step{typed: line, command: text})
			continue
		}
		if len(all) == 0 {
			continue
		}
		last := &all[len(all)-1]
		if text, ok := strings.CutPrefix(line, "> "); ok && last.answer == "" {
			last.typed += line
			last.command += text
			continue
		}
		last.answer += line
	}
	return all
}

// boundary separates the answers of one session's commands.
const boundary = "\x01boundary\n"

// session runs a block in one shell and compares, or returns the block with today's answers.
func session(t *testing.T, place, block string) string {
	t.Helper()
	all := steps(block)
	if len(all) == 0 {
		t.Errorf("%s: no line begins with \"$ \"", place)
		return block
	}
	var script strings.Builder
	for _, s := range all {
		script.WriteString(s.command + "printf '\\001boundary\\n'\n")
	}
	cmd := exec.Command("bash", "-c", "exec 2>&1\n"+script.String())
	cmd.Env = environment()
	cmd.Dir = t.TempDir()
	out, err := cmd.CombinedOutput()
	answers := strings.Split(string(out), boundary)
	if err != nil || len(answers) != len(all)+1 {
		t.Errorf("%s: %v\n%s", place, err, out)
		return block
	}
	var fresh strings.Builder
	for i, s := range all {
		fresh.WriteString(s.typed)
		if update {
			fresh.WriteString(withoutVolatile(answers[i]))
		} else if !matches(s.answer, answers[i]) {
			t.Errorf("%s: %sthe document says\n%sand the program\n%s", place, s.typed, s.answer, answers[i])
		}
	}
	return fresh.String()
}

func matches(pattern, text string) bool {
	parts := strings.Split(pattern, "…")
	for i := range parts {
		parts[i] = regexp.QuoteMeta(parts[i])
	}
	return regexp.MustCompile(`^` + strings.Join(parts, `[^"\n]*`) + `$`).MatchString(text)
}

var (
	receivedAt = regexp.MustCompile(`"received_at":"([^"]+)"`)
	deliveryID = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}`)
)

// withoutVolatile puts … where the next run will differ: the time of receipt and ids made of it.
func withoutVolatile(answer string) string {
	for _, found := range receivedAt.FindAllStringSubmatch(answer, -1) {
		answer = strings.ReplaceAll(answer, found[1], "…")
	}
	return deliveryID.ReplaceAllString(answer, "…")
}

func TestMatches(t *testing.T) {
	for _, c := range []struct {
		pattern, text string
		want          bool
	}{
		{"a\n", "a\n", true},
		{"a\n", "b\n", false},
		{`"x":"…","y":1`, `"x":"now","y":1`, true},
		{`"x":"…","y":1`, `"x":"now","y":2`, false},
		{"a…", "a\nb", false},
		{"(.*)", "anything", false},
	} {
		if got := matches(c.pattern, c.text); got != c.want {
			t.Errorf("%q against %q: %v, want %v", c.pattern, c.text, got, c.want)
		}
	}
}

const (
	tableBegin = "<!-- env:begin -->"
	tableEnd   = "<!-- env:end -->"
)

// The README's table of variables is the program's own.
func TestTableOfVariables(t *testing.T) {
	cmd := exec.Command(filepath.Join(bridgeDir, "bridge"), "help", "env", "--markdown")
	cmd.Env = environment()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	want, err := cmd.Output()
	if err != nil || len(want) == 0 {
		t.Fatalf("bridge help env --markdown: %v\n%s", err, stderr.String())
	}
	text, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(text), tableBegin)
	table, after, ok2 := strings.Cut(rest, tableEnd)
	if !ok || !ok2 {
		t.Fatalf("README.md lacks the marks %s and %s", tableBegin, tableEnd)
	}
	if strings.TrimSpace(table) == strings.TrimSpace(string(want)) {
		return
	}
	if !update {
		t.Fatalf("the table in README.md is not what `bridge help env --markdown` prints; UPDATE_DOCS=1 go test ./docs mends it")
	}
	fresh := before + tableBegin + "\n" + strings.TrimSpace(string(want)) + "\n" + tableEnd + after
	if err := os.WriteFile("../README.md", []byte(fresh), 0o644); err != nil {
		t.Fatal(err)
	}
}

// freshServer starts a PostgreSQL that ends with the test, and connects to it as its administrator.
func freshServer(t *testing.T) (*localpg.Server, *pgx.Conn) {
	t.Helper()
	server, err := localpg.Start(t.Context(), localpg.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	conn, err := pgx.Connect(t.Context(), server.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return server, conn
}

// The queries of the documents run on the tables that the bridge makes.
func TestQueries(t *testing.T) {
	server, conn := freshServer(t)
	if err := migrations.Apply(t.Context(), conn, "bridge", func(migrations.Migration) {}); err != nil {
		t.Fatal(err)
	}
	// What the route of the demonstration makes.
	if _, err := conn.Exec(t.Context(), `create table telemetry (device_id text, time timestamptz, message_id uuid,
		received_at timestamptz, topic text, temperature float8, humidity float8, state text, payload jsonb)`); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), `insert into bridge.dead_letters (id, route, topic, payload, qos, retain, received_at, reason)
		values (gen_random_uuid(), 'telemetry', 'devices/d/telemetry', '\xff00', 1, false, now(), 'invalid_utf8')`); err != nil {
		t.Fatal(err)
	}
	queries := 0
	for _, name := range []string{"../README.md", "configuration.md", "delivery.md", "operations.md"} {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		eachBlock(string(text), "sql", func(line int, block string) string {
			for statement := range strings.SplitSeq(block, ";\n") { // create database wants to be alone
				queries++
				if _, err := conn.Exec(t.Context(), statement); err != nil {
					t.Errorf("%s:%d: %v\n%s", name, line, err, statement)
				}
			}
			return block
		})
	}
	if queries == 0 {
		t.Error("no queries found: the pattern is broken")
	}
	if !t.Failed() {
		firstDatabase(t, strings.Replace(server.URL("telemetry"), "user=postgres", "user=bridge", 1))
	}
}

// firstDatabase is what a newcomer has who followed the README: everything can be made, and the tables
// are where psql looks for them.
func firstDatabase(t *testing.T, url string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	cfg := mapping.RouteConfig{Name: "telemetry", Topic: "devices/{device_id}/telemetry"}
	routes, err := mapping.Compile([]mapping.RouteConfig{cfg})
	if err != nil {
		t.Fatal(err)
	}
	look := func(when string) {
		t.Helper()
		r, err := store.Verify(t.Context(), conn, "bridge", routes.All()[0])
		if err != nil || r.Refused != nil || len(r.Warnings) > 0 || r.Table != "public.telemetry" {
			t.Errorf("%s: %+v, %v", when, r, err)
		}
	}
	look("before the first start")
	if err := migrations.Apply(t.Context(), conn, "bridge", func(migrations.Migration) {}); err != nil {
		t.Fatal(err)
	}
	look("after it")
}

// TestOwnTable: the table that the document shows suits the route that it shows.
func TestOwnTable(t *testing.T) {
	text, err := os.ReadFile("configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, ok := bytes.Cut(text, []byte("## A table of your own\n"))
	if !ok {
		t.Fatal("the section is gone")
	}
	server, conn := freshServer(t)
	first := func(language string) (block string) {
		eachBlock(string(text), language, func(_ int, b string) string {
			if block == "" {
				block = b
			}
			return b
		})
		return block
	}
	if _, err := conn.Exec(t.Context(), "create role bridge login; "+first("sql")); err != nil {
		t.Fatal(err)
	}
	check := exec.Command("bash", "-c", first("sh")+"bridge check --connect")
	check.Env = append(environment(), "BRIDGE_MQTT_URLS=mqtt://127.0.0.1:1", "BRIDGE_DATABASE_URL="+strings.Replace(server.URL("postgres"), "user=postgres", "user=bridge", 1))
	out, _ := check.CombinedOutput() // it fails for want of a broker
	if !strings.Contains(string(out), "-- database: route mine: table public.my_table fits\n") || strings.Contains(string(out), "warning: ") {
		t.Errorf("the program says\n%s", out)
	}
}

var link = regexp.MustCompile(`\]\(([^)#]+)(#[^)]*)?\)`)

// Links between the documents lead somewhere.
func TestLinks(t *testing.T) {
	files, err := filepath.Glob("*.md")
	if err != nil {
		t.Fatal(err)
	}
	more, err := filepath.Glob("decisions/*.md")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, name := range append(append(files, more...), "../README.md") {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, match := range link.FindAllStringSubmatch(string(text), -1) {
			if strings.Contains(match[1], "://") {
				continue
			}
			found++
			if _, err := os.Stat(filepath.Join(filepath.Dir(name), match[1])); err != nil {
				t.Errorf("%s links to %s: %v", name, match[1], err)
			}
		}
	}
	if found == 0 {
		t.Error("no links found: the pattern is broken")
	}
}
