//go:build unix

package deploy

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mqttpg/bridge/integration/provider"
	"go.yaml.in/yaml/v3"
)

const folder = "../../deploy/k8s"

func TestMain(m *testing.M) { os.Exit(provider.Main(m)) }

// deployment is the part of a Deployment that the tests look at. Fields that are not named here
// are not judged.
type deployment struct {
	Spec struct {
		Replicas int
		Selector struct {
			MatchLabels map[string]string `yaml:"matchLabels"`
		}
		Template struct {
			Metadata struct{ Labels map[string]string }
			Spec     struct {
				GracePeriod     int `yaml:"terminationGracePeriodSeconds"`
				SecurityContext struct {
					RunAsNonRoot   bool                  `yaml:"runAsNonRoot"`
					SeccompProfile struct{ Type string } `yaml:"seccompProfile"`
				} `yaml:"securityContext"`
				Containers []container
			}
		}
	}
}

type container struct {
	Env []struct {
		Name, Value string
	}
	Ports []struct {
		Name string
	}
	LivenessProbe   probe `yaml:"livenessProbe"`
	ReadinessProbe  probe `yaml:"readinessProbe"`
	StartupProbe    probe `yaml:"startupProbe"`
	SecurityContext struct {
		AllowPrivilegeEscalation *bool `yaml:"allowPrivilegeEscalation"`
		ReadOnlyRootFilesystem   bool  `yaml:"readOnlyRootFilesystem"`
		Capabilities             struct{ Drop []string }
	} `yaml:"securityContext"`
}

type probe struct {
	HTTPGet struct{ Path, Port string } `yaml:"httpGet"`
}

func read(t *testing.T, name string, into any) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(folder, name))
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(data, into); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

// settings reads bridge.env as kustomize does: a variable per line, # begins a comment line.
func settings(t *testing.T) map[string]string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(folder, "bridge.env"))
	if err != nil {
		t.Fatal(err)
	}
	env := map[string]string{}
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, value, ok := strings.Cut(line, "=")
		if !ok {
			t.Fatalf("bridge.env: %q sets nothing", line)
		}
		env[name] = value
	}
	return env
}

func theDeployment(t *testing.T) (deployment, container) {
	t.Helper()
	var d deployment
	read(t, "deployment.yaml", &d)
	if len(d.Spec.Template.Spec.Containers) != 1 {
		t.Fatalf("%d containers, want 1", len(d.Spec.Template.Spec.Containers))
	}
	return d, d.Spec.Template.Spec.Containers[0]
}

func TestEveryFileIsReferredTo(t *testing.T) {
	var k struct {
		Resources          []string
		ConfigMapGenerator []struct{ Envs []string } `yaml:"configMapGenerator"`
	}
	read(t, "kustomization.yaml", &k)
	want := append([]string{"kustomization.yaml"}, k.Resources...)
	for _, generator := range k.ConfigMapGenerator {
		want = append(want, generator.Envs...)
	}
	entries, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, entry := range entries {
		if !entry.IsDir() {
			got = append(got, entry.Name())
		}
	}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("the folder holds %v, the kustomization needs %v", got, want)
	}
}

func TestEverySettingIsKnown(t *testing.T) {
	code, help, stderr := provider.RunBridge(t, nil, nil, "help", "env")
	if code != 0 {
		t.Fatalf("bridge help env: exit code %d: %s", code, stderr)
	}
	known := map[string]bool{}
	for _, name := range regexp.MustCompile(`BRIDGE_[A-Z_]+`).FindAllString(help, -1) {
		known[name] = true
	}
	_, c := theDeployment(t)
	names := slices.Collect(maps.Keys(settings(t)))
	for _, variable := range c.Env {
		names = append(names, variable.Name)
	}
	for _, name := range names {
		if !strings.HasPrefix(name, "BRIDGE_") || strings.HasPrefix(name, "BRIDGE_ROUTE_") {
			continue // routes are compiled by the next test
		}
		if !known[name] && !known[strings.TrimSuffix(name, "_FILE")] {
			t.Errorf("`bridge help env` does not know %s", name)
		}
	}
}

func TestTheBridgeTakesTheSettings(t *testing.T) {
	env := settings(t)
	_, c := theDeployment(t)
	for _, variable := range c.Env {
		switch {
		case strings.HasSuffix(variable.Name, "_FILE"):
			env[variable.Name] = filepath.Join(t.TempDir(), "secret")
			if err := os.WriteFile(env[variable.Name], []byte("postgres://bridge@localhost/telemetry"), 0o600); err != nil {
				t.Fatal(err)
			}
		case variable.Value != "":
			env[variable.Name] = variable.Value
		default: // from the Secret
			env[variable.Name] = "secret"
		}
	}
	code, stdout, stderr := provider.RunBridge(t, env, nil, "check")
	if code != 0 {
		t.Fatalf("bridge check: exit code %d\n%s", code, stderr)
	}
	if !strings.Contains(stdout, "telemetry") {
		t.Errorf("bridge check does not show the route:\n%s", stdout)
	}
}

func TestDeployment(t *testing.T) {
	d, c := theDeployment(t)
	for _, test := range []struct {
		name  string
		probe probe
		want  string
	}{
		{"startup", c.StartupProbe, "/livez"},
		{"liveness", c.LivenessProbe, "/livez"}, // never /readyz: a restart mends no broker
		{"readiness", c.ReadinessProbe, "/readyz"},
	} {
		if test.probe.HTTPGet.Path != test.want || test.probe.HTTPGet.Port != c.Ports[0].Name {
			t.Errorf("the %s probe asks %+v, want %s", test.name, test.probe.HTTPGet, test.want)
		}
	}
	timeout, err := time.ParseDuration(settings(t)["BRIDGE_SHUTDOWN_TIMEOUT"])
	if err != nil {
		t.Fatal(err)
	}
	if grace := time.Duration(d.Spec.Template.Spec.GracePeriod) * time.Second; grace <= timeout {
		t.Errorf("the pod is killed after %v, the bridge may drain for %v", grace, timeout)
	}
	for name, value := range d.Spec.Selector.MatchLabels {
		if d.Spec.Template.Metadata.Labels[name] != value {
			t.Errorf("the selector's %s=%s is not on the pods", name, value)
		}
	}
	pod := d.Spec.Template.Spec.SecurityContext
	escalation := c.SecurityContext.AllowPrivilegeEscalation
	if !pod.RunAsNonRoot || pod.SeccompProfile.Type != "RuntimeDefault" || escalation == nil || *escalation ||
		!c.SecurityContext.ReadOnlyRootFilesystem || !slices.Equal(c.SecurityContext.Capabilities.Drop, []string{"ALL"}) {
		t.Errorf("the pod does not meet the restricted policy: %+v, %+v", pod, c.SecurityContext)
	}
}

func TestServiceAndBudgetSelectThePods(t *testing.T) {
	d, c := theDeployment(t)
	labels := d.Spec.Template.Metadata.Labels
	var service struct {
		Spec struct {
			Selector map[string]string
			Ports    []struct {
				TargetPort string `yaml:"targetPort"`
			}
		}
	}
	read(t, "service.yaml", &service)
	var budget struct {
		Spec struct {
			MaxUnavailable int `yaml:"maxUnavailable"`
			Selector       struct {
				MatchLabels map[string]string `yaml:"matchLabels"`
			}
		}
	}
	read(t, "poddisruptionbudget.yaml", &budget)
	if !maps.Equal(service.Spec.Selector, labels) || !maps.Equal(budget.Spec.Selector.MatchLabels, labels) {
		t.Errorf("the pods have %v, the service selects %v, the budget %v", labels, service.Spec.Selector, budget.Spec.Selector.MatchLabels)
	}
	if service.Spec.Ports[0].TargetPort != c.Ports[0].Name {
		t.Errorf("the service leads to port %s", service.Spec.Ports[0].TargetPort)
	}
	if budget.Spec.MaxUnavailable >= d.Spec.Replicas {
		t.Error("the budget lets all pods go at once")
	}
}
