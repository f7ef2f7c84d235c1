//go:build unix

package deploy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/mqttpg/bridge/integration/provider"
	"go.yaml.in/yaml/v3"
)

const root = "../.."

// `make manifests` builds the overlays and validates them against the schemas of Kubernetes.
func TestMain(m *testing.M) {
	build := exec.Command("make", "-C", root, "--no-print-directory", "manifests")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "make manifests: %v\n%s", err, out)
		os.Exit(1)
	}
	os.Exit(provider.Main(m))
}

// The builds of `make manifests`. "everything" is production with all components.
var builds = []string{"base", "dev", "production", "everything"}

// resource is any object, with what the tests look at. Fields that are not named here are not judged.
type resource struct {
	Kind     string
	Metadata struct {
		Name, Namespace     string
		Labels, Annotations map[string]string
	}
	Data map[string]string
	Spec spec

	AutomountServiceAccountToken *bool `yaml:"automountServiceAccountToken"`
}

type spec struct {
	Replicas                *int
	Selector                any
	ProgressDeadlineSeconds int `yaml:"progressDeadlineSeconds"`
	Strategy                struct {
		RollingUpdate struct {
			MaxSurge       int `yaml:"maxSurge"`
			MaxUnavailable int `yaml:"maxUnavailable"`
		} `yaml:"rollingUpdate"`
	}
	Template    template
	JobTemplate struct {
		Spec struct{ Template template }
	} `yaml:"jobTemplate"`
	Suspend  bool
	Schedule string
	Ports    []struct {
		TargetPort any `yaml:"targetPort"`
	}
	MaxReplicas    int                         `yaml:"maxReplicas"`
	MinReplicas    int                         `yaml:"minReplicas"`
	MaxUnavailable int                         `yaml:"maxUnavailable"`
	ScaleTargetRef struct{ Kind, Name string } `yaml:"scaleTargetRef"`
	PodSelector    struct {
		MatchLabels map[string]string `yaml:"matchLabels"`
	} `yaml:"podSelector"`
	Ingress, Egress []struct {
		Ports []struct {
			Port     any
			Protocol string
		}
	}
	PodMetricsEndpoints []struct{ Port string } `yaml:"podMetricsEndpoints"`
	Groups              []struct {
		Rules []struct{ Alert, Expr string }
	}
}

// labels returns what a selector asks for, in either of its forms.
func (s *spec) labels(t *testing.T) map[string]string {
	t.Helper()
	selector, ok := s.Selector.(map[string]any)
	if !ok {
		t.Fatalf("the selector is %v", s.Selector)
	}
	if match, ok := selector["matchLabels"].(map[string]any); ok {
		selector = match
	}
	labels := map[string]string{}
	for name, value := range selector {
		labels[name] = fmt.Sprint(value)
	}
	return labels
}

type template struct {
	Metadata struct{ Labels map[string]string }
	Spec     podSpec
}

type podSpec struct {
	ServiceAccountName string `yaml:"serviceAccountName"`
	AutomountToken     *bool  `yaml:"automountServiceAccountToken"`
	ServiceLinks       *bool  `yaml:"enableServiceLinks"`
	GracePeriod        int    `yaml:"terminationGracePeriodSeconds"`
	HostNetwork        bool   `yaml:"hostNetwork"`
	HostPID            bool   `yaml:"hostPID"`
	HostIPC            bool   `yaml:"hostIPC"`
	SecurityContext    struct {
		RunAsNonRoot   bool                  `yaml:"runAsNonRoot"`
		RunAsUser      int                   `yaml:"runAsUser"`
		SeccompProfile struct{ Type string } `yaml:"seccompProfile"`
	} `yaml:"securityContext"`
	InitContainers []container `yaml:"initContainers"`
	Containers     []container
	Volumes        []struct {
		Name   string
		Secret struct {
			SecretName string `yaml:"secretName"`
		}
		ConfigMap struct{ Name string } `yaml:"configMap"`
		HostPath  any                   `yaml:"hostPath"`
	}
	TopologySpread []struct {
		TopologyKey       string `yaml:"topologyKey"`
		WhenUnsatisfiable string `yaml:"whenUnsatisfiable"`
		LabelSelector     struct {
			MatchLabels map[string]string `yaml:"matchLabels"`
		} `yaml:"labelSelector"`
	} `yaml:"topologySpreadConstraints"`
}

type container struct {
	Name, Image string
	Args        []string
	EnvFrom     []struct {
		ConfigMapRef struct{ Name string } `yaml:"configMapRef"`
	} `yaml:"envFrom"`
	Env []struct {
		Name, Value string
		ValueFrom   struct {
			ResourceFieldRef struct{ Resource, Divisor string } `yaml:"resourceFieldRef"`
		} `yaml:"valueFrom"`
	}
	Ports []struct {
		Name          string
		ContainerPort int `yaml:"containerPort"`
		HostPort      int `yaml:"hostPort"`
	}
	LivenessProbe   *probe `yaml:"livenessProbe"`
	ReadinessProbe  *probe `yaml:"readinessProbe"`
	StartupProbe    *probe `yaml:"startupProbe"`
	SecurityContext struct {
		AllowPrivilegeEscalation *bool `yaml:"allowPrivilegeEscalation"`
		ReadOnlyRootFilesystem   bool  `yaml:"readOnlyRootFilesystem"`
		Privileged               bool
		Capabilities             struct{ Drop, Add []string }
	} `yaml:"securityContext"`
	Resources struct {
		Requests, Limits map[string]string
	}
	VolumeMounts []struct {
		Name      string
		MountPath string `yaml:"mountPath"`
	} `yaml:"volumeMounts"`
}

type probe struct {
	HTTPGet struct{ Path, Port string } `yaml:"httpGet"`
}

// resources reads what `make manifests` has built of an overlay.
func resources(t *testing.T, name string) []resource {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(root, ".cache/manifests", name+".yaml"))
	if err != nil {
		t.Fatal(err)
	}
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	var all []resource
	for {
		var r resource
		err := decoder.Decode(&r)
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		all = append(all, r)
	}
}

// one returns the only resource of a kind, or the one with the name.
func one(t *testing.T, all []resource, kind, name string) resource {
	t.Helper()
	i := slices.IndexFunc(all, func(r resource) bool { return r.Kind == kind && (name == "" || r.Metadata.Name == name) })
	if i < 0 {
		t.Fatalf("there is no %s %s", kind, name)
	}
	return all[i]
}

// pods returns every template of pods, by the name of its owner.
func pods(all []resource) map[string]template {
	found := map[string]template{}
	for _, r := range all {
		for _, candidate := range []template{r.Spec.Template, r.Spec.JobTemplate.Spec.Template} {
			if len(candidate.Spec.Containers) > 0 {
				found[r.Kind+"/"+r.Metadata.Name] = candidate
			}
		}
	}
	return found
}

// environment is what a container of the bridge gets, as far as the manifests say.
func environment(t *testing.T, all []resource, c container) map[string]string {
	t.Helper()
	env := map[string]string{}
	for _, from := range c.EnvFrom {
		maps.Copy(env, one(t, all, "ConfigMap", from.ConfigMapRef.Name).Data)
	}
	for _, variable := range c.Env {
		env[variable.Name] = variable.Value
	}
	return env
}

// each calls do for every build.
func each(t *testing.T, do func(t *testing.T, all []resource)) {
	t.Helper()
	for _, name := range builds {
		t.Run(name, func(t *testing.T) { do(t, resources(t, name)) })
	}
}

// TestValidationIsStrict: what `make manifests` calls valid has no field that Kubernetes does not know.
func TestValidationIsStrict(t *testing.T) {
	dir := t.TempDir()
	good, err := os.ReadFile(filepath.Join(root, ".cache/manifests/base.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for old, bad := range map[string]string{
		"maxUnavailable: 0": "maxUnavailble: 0",
		"httpGet:":          "httpGett:",
		"minReplicas: 2":    "minReplicas: two",
	} {
		if !strings.Contains(string(good), old) {
			t.Fatalf("base.yaml holds no %q", old)
		}
		file := filepath.Join(dir, "bad.yaml")
		if err := os.WriteFile(file, []byte(strings.Replace(string(good), old, bad, 1)), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("make", "-C", root, "--no-print-directory", "-s", "validate", "FILES="+file).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "invalid") {
			t.Errorf("%s is taken for valid: %v\n%s", bad, err, out)
		}
	}
}

func TestEveryFileIsReferredTo(t *testing.T) {
	for _, folder := range []string{"base", "overlays/dev", "overlays/production", "components/prometheus-operator", "components/certificate"} {
		dir := filepath.Join(root, "deploy/k8s", folder)
		text, err := os.ReadFile(filepath.Join(dir, "kustomization.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, entry := range entries {
			name := entry.Name()
			if name != "kustomization.yaml" && name != "roles.sql" && !strings.Contains(string(text), name) {
				t.Errorf("%s/%s is of no use to the kustomization", folder, name)
			}
		}
	}
}
