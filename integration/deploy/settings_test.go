//go:build unix

package deploy

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/mqttpg/bridge/integration/provider"
)

// TestEverySettingIsKnown: every variable that begins with BRIDGE_ stands in `bridge help env`.
func TestEverySettingIsKnown(t *testing.T) {
	code, help, stderr := provider.RunBridge(t, nil, nil, "help", "env")
	if code != 0 {
		t.Fatalf("bridge help env: exit code %d: %s", code, stderr)
	}
	known, suffixes := map[string]bool{}, map[string]bool{}
	for _, name := range regexp.MustCompile(`(?m)^BRIDGE_\S+`).FindAllString(help, -1) {
		if suffix, ok := strings.CutPrefix(name, "BRIDGE_ROUTE_<NAME>_"); ok {
			suffixes[suffix] = true
		}
		known[name] = true
	}
	if len(known) < 20 || len(suffixes) < 10 {
		t.Fatalf("%d variables and %d suffixes in the help: the pattern that finds them is broken", len(known), len(suffixes))
	}
	each(t, func(t *testing.T, all []resource) {
		for owner, pod := range pods(all) {
			for _, c := range pod.Spec.Containers {
				env := environment(t, all, c)
				for name := range env {
					switch rest, isRoute := strings.CutPrefix(name, "BRIDGE_ROUTE_"); {
					case !strings.HasPrefix(name, "BRIDGE_"):
					case isRoute:
						route, ok := routeOf(rest, env["BRIDGE_ROUTES"])
						if !ok || !suffixes[strings.TrimPrefix(rest, route+"_")] {
							t.Errorf("%s: %s belongs to no route, or says nothing to it", owner, name)
						}
					case !known[name]:
						t.Errorf("%s: `bridge help env` does not know %s", owner, name)
					}
				}
			}
		}
	})
}

// routeOf finds the route that a variable without its prefix belongs to.
func routeOf(rest, routes string) (string, bool) {
	for name := range strings.SplitSeq(strings.ToUpper(routes), ",") {
		if strings.HasPrefix(rest, name+"_") {
			return name, true
		}
	}
	return "", false
}

// TestTheBrokerOfTheDevOverlay is set as docs/operations.md advises.
func TestTheBrokerOfTheDevOverlay(t *testing.T) {
	advice, err := os.ReadFile(filepath.Join(root, "docs/operations.md"))
	if err != nil {
		t.Fatal(err)
	}
	conf, err := os.ReadFile(filepath.Join(root, "deploy/k8s/overlays/dev/mosquitto.conf"))
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(advice), "**Mosquitto.**")
	_, text, _ = strings.Cut(text, "```text\n")
	text, _, _ = strings.Cut(text, "```")
	for line := range strings.Lines(text) {
		setting, _, _ := strings.Cut(line, "#")
		setting = strings.TrimSpace(setting)
		if name, _, _ := strings.Cut(setting, " "); name == "persistence_location" {
			continue // where the volume is
		}
		if setting == "" || !strings.Contains("\n"+string(conf), "\n"+setting+"\n") {
			t.Errorf("mosquitto.conf lacks %q", setting)
		}
	}
	if strings.Count(text, "\n") < 4 {
		t.Errorf("the advice is %q: the pattern that finds it is broken", text)
	}
}

// TestTheBridgeTakesTheSettings: the bridge starts with them, and its routes compile.
func TestTheBridgeTakesTheSettings(t *testing.T) {
	each(t, func(t *testing.T, all []resource) {
		for owner, pod := range pods(all) {
			for _, c := range pod.Spec.Containers {
				if len(c.EnvFrom) == 0 {
					continue // broker and database
				}
				env := environment(t, all, c)
				takes(t, owner, env)
			}
		}
	})
}

func takes(t *testing.T, owner string, env map[string]string) {
	t.Helper()
	dir := t.TempDir()
	certificate, key := certificate(t, dir)
	for name, file := range env {
		switch {
		case !strings.HasPrefix(name, "BRIDGE_"):
			delete(env, name) // for the Go runtime, from the limits
		case strings.HasSuffix(name, "_CA_FILE"), strings.HasSuffix(name, "_CERT_FILE"):
			env[name] = certificate
		case strings.HasSuffix(name, "_KEY_FILE"):
			env[name] = key
		case strings.HasSuffix(name, "_FILE"):
			env[name] = filepath.Join(dir, filepath.Base(file))
			text := "postgres://bridge@localhost/telemetry" // a password may look like that, too
			if err := os.WriteFile(env[name], []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	code, stdout, stderr := provider.RunBridge(t, env, nil, "check")
	if code != 0 {
		t.Errorf("%s: bridge check: exit code %d\n%s", owner, code, stderr)
	}
	if !strings.Contains(stdout, "telemetry") {
		t.Errorf("%s: bridge check does not show the route:\n%s", owner, stdout)
	}
}
