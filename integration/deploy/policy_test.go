//go:build unix

package deploy

import (
	"fmt"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestPodSecurity: every pod meets the restricted profile and more, also those of the broker and the
// database of the dev overlay.
func TestPodSecurity(t *testing.T) {
	no := func(b *bool) bool { return b != nil && !*b }
	each(t, func(t *testing.T, all []resource) {
		for name, pod := range pods(all) {
			p := pod.Spec
			if !p.SecurityContext.RunAsNonRoot || p.SecurityContext.RunAsUser == 0 || p.SecurityContext.SeccompProfile.Type != "RuntimeDefault" {
				t.Errorf("%s: the pod's security context is %+v", name, p.SecurityContext)
			}
			if p.HostNetwork || p.HostPID || p.HostIPC {
				t.Errorf("%s: the pod shares namespaces with its node", name)
			}
			for _, volume := range p.Volumes {
				if volume.HostPath != nil {
					t.Errorf("%s: volume %s is a folder of the node", name, volume.Name)
				}
			}
			if !no(p.AutomountToken) {
				t.Errorf("%s: the pod gets a token for the API", name)
			}
			if !no(p.ServiceLinks) {
				t.Errorf("%s: the pod gets a variable for each Service", name)
			}
			for _, c := range slices.Concat(p.InitContainers, p.Containers) {
				for _, port := range c.Ports {
					if port.HostPort != 0 {
						t.Errorf("%s: container %s listens on its node", name, c.Name)
					}
				}
				s := c.SecurityContext
				if !no(s.AllowPrivilegeEscalation) || s.Privileged || !s.ReadOnlyRootFilesystem || !slices.Equal(s.Capabilities.Drop, []string{"ALL"}) || len(s.Capabilities.Add) > 0 {
					t.Errorf("%s: the security context of container %s is %+v", name, c.Name, s)
				}
			}
		}
		for _, r := range all {
			if r.Kind == "ServiceAccount" && !no(r.AutomountServiceAccountToken) {
				t.Errorf("ServiceAccount %s hands out tokens", r.Metadata.Name)
			}
			if r.Kind == "Namespace" && r.Metadata.Labels["pod-security.kubernetes.io/enforce"] != "restricted" {
				t.Errorf("Namespace %s does not enforce the restricted profile", r.Metadata.Name)
			}
		}
	})
}

func TestImagesAndResources(t *testing.T) {
	tagged := regexp.MustCompile(`(:[A-Za-z0-9._-]+|@sha256:[0-9a-f]{64})$`)
	each(t, func(t *testing.T, all []resource) {
		for name, pod := range pods(all) {
			for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
				if !tagged.MatchString(c.Image) || strings.HasSuffix(c.Image, ":latest") {
					t.Errorf("%s: the image %s names no version", name, c.Image)
				}
				for _, what := range []string{"cpu", "memory"} {
					if c.Resources.Requests[what] == "" || c.Resources.Limits[what] == "" {
						t.Errorf("%s: container %s has %s requested %q, limited %q", name, c.Name, what, c.Resources.Requests[what], c.Resources.Limits[what])
					}
				}
			}
		}
	})
}

// bridgeOf returns the Deployment and its container.
func bridgeOf(t *testing.T, all []resource) (resource, container) {
	t.Helper()
	d := one(t, all, "Deployment", "bridge")
	if len(d.Spec.Template.Spec.Containers) != 1 {
		t.Fatalf("%d containers, want 1", len(d.Spec.Template.Spec.Containers))
	}
	return d, d.Spec.Template.Spec.Containers[0]
}

func TestProbes(t *testing.T) {
	each(t, func(t *testing.T, all []resource) {
		_, c := bridgeOf(t, all)
		for name, test := range map[string]struct {
			probe *probe
			path  string
		}{
			"startup":   {c.StartupProbe, "/livez"},
			"liveness":  {c.LivenessProbe, "/livez"}, // never /readyz: a restart mends no broker
			"readiness": {c.ReadinessProbe, "/readyz"},
		} {
			if test.probe == nil || test.probe.HTTPGet.Path != test.path || test.probe.HTTPGet.Port != c.Ports[0].Name {
				t.Errorf("the %s probe asks %+v, want %s", name, test.probe, test.path)
			}
		}
		for name, pod := range pods(all) {
			for _, c := range pod.Spec.Containers {
				if !strings.HasPrefix(name, "CronJob/") && (c.StartupProbe == nil || c.LivenessProbe == nil || c.ReadinessProbe == nil) {
					t.Errorf("%s: container %s lacks a probe", name, c.Name)
				}
			}
		}
	})
}

func TestRollout(t *testing.T) {
	each(t, func(t *testing.T, all []resource) {
		d, c := bridgeOf(t, all)
		env := environment(t, all, c)
		timeout, err := time.ParseDuration(env["BRIDGE_SHUTDOWN_TIMEOUT"])
		if err != nil {
			t.Fatal(err)
		}
		if grace := time.Duration(d.Spec.Template.Spec.GracePeriod) * time.Second; grace < timeout+5*time.Second {
			t.Errorf("the pod is killed after %v, the bridge may drain for %v", grace, timeout)
		}
		if r := d.Spec.Strategy.RollingUpdate; r.MaxUnavailable != 0 || r.MaxSurge < 1 {
			t.Errorf("a rollout takes pods away before there are new ones: %+v", r)
		}
		for _, from := range c.EnvFrom {
			if !regexp.MustCompile(`-[a-z0-9]{10}$`).MatchString(from.ConfigMapRef.Name) {
				t.Errorf("ConfigMap %s has no hash in its name: its changes would roll nothing", from.ConfigMapRef.Name)
			}
		}
		for _, s := range d.Spec.Template.Spec.TopologySpread {
			if s.WhenUnsatisfiable != "ScheduleAnyway" {
				t.Errorf("spread over %s keeps bridges from running", s.TopologyKey)
			}
			if !holds(d.Spec.Template.Metadata.Labels, s.LabelSelector.MatchLabels) {
				t.Errorf("spread over %s counts pods with %v, which the bridge's are not", s.TopologyKey, s.LabelSelector.MatchLabels)
			}
		}
		limits := map[string]string{}
		for _, variable := range c.Env {
			limits[variable.Name] = variable.ValueFrom.ResourceFieldRef.Resource
			if divisor := variable.ValueFrom.ResourceFieldRef.Divisor; divisor != "" { // bytes and cores are what Go understands
				t.Errorf("%s is divided by %s", variable.Name, divisor)
			}
		}
		if limits["GOMEMLIMIT"] != "requests.memory" || limits["GOMAXPROCS"] != "limits.cpu" {
			t.Errorf("the limits of Go come from %v", limits)
		}
		// docs/kubernetes.md: what waits, about as much while it is written, and the program. GOMEMLIMIT leaves
		// room for all of it, or the collector would run for nothing.
		const program = 32 << 20
		waits, request, limit := mebibytes(t, env["BRIDGE_MAX_INFLIGHT_BYTES"]), mebibytes(t, c.Resources.Requests["memory"]), mebibytes(t, c.Resources.Limits["memory"])
		if need := 2*waits + program; request < need || limit < request+request/4 {
			t.Errorf("%d bytes wait at most, so the bridge needs %d: it requests %d, and is killed at %d", waits, need, request, limit)
		}
	})
}

// mebibytes reads a size in the one unit that all of ours have.
func mebibytes(t *testing.T, text string) int {
	t.Helper()
	number, ok := strings.CutSuffix(strings.TrimSuffix(text, "B"), "Mi")
	n, err := strconv.Atoi(number)
	if err != nil || !ok {
		t.Fatalf("%q is no number of mebibytes", text)
	}
	return n << 20
}

// TestNetworkPolicy: the policy lets out what the settings name, and nothing that no setting names.
func TestNetworkPolicy(t *testing.T) {
	each(t, func(t *testing.T, all []resource) {
		_, c := bridgeOf(t, all)
		policy := one(t, all, "NetworkPolicy", "bridge").Spec
		out := map[string]bool{}
		for _, rule := range policy.Egress {
			if len(rule.Ports) == 0 {
				t.Error("a rule lets everything out")
			}
			for _, port := range rule.Ports {
				out[strings.TrimSpace(fmt.Sprint(port.Port, " ", port.Protocol))] = true
			}
		}
		wanted := []string{"53 UDP", "53 TCP"}
		if urls := environment(t, all, c)["BRIDGE_MQTT_URLS"]; urls != "" {
			for address := range strings.SplitSeq(urls, ",") {
				u, err := url.Parse(address)
				if err != nil {
					t.Fatal(err)
				}
				wanted = append(wanted, u.Port())
			}
		}
		for _, r := range all { // after the translation of the Service's address
			if pod, ok := pods([]resource{r})["StatefulSet/"+r.Metadata.Name]; ok {
				wanted = append(wanted, strconv.Itoa(pod.Spec.Containers[0].Ports[0].ContainerPort))
			}
		}
		for _, port := range wanted {
			if !out[port] {
				t.Errorf("nothing gets out to port %s, only to %v", port, out)
			}
		}
		if in := policy.Ingress; len(in) != 1 || len(in[0].Ports) != 1 || in[0].Ports[0].Port != c.Ports[0].Name {
			t.Errorf("it lets in %+v", in)
		}
	})
}

func TestSelectors(t *testing.T) {
	each(t, func(t *testing.T, all []resource) {
		d, c := bridgeOf(t, all)
		labels := d.Spec.Template.Metadata.Labels
		// The migration is not to be counted, spread, or asked for its health.
		others := one(t, all, "CronJob", "bridge-migrate").Spec.JobTemplate.Spec.Template.Metadata.Labels
		for _, r := range []resource{d, one(t, all, "Service", "bridge"), one(t, all, "PodDisruptionBudget", "bridge")} {
			selector := r.Spec.labels(t)
			if !holds(labels, selector) || holds(others, selector) {
				t.Errorf("%s %s selects %v, the pods have %v, those of the migration %v", r.Kind, r.Metadata.Name, selector, labels, others)
			}
		}
		for _, r := range all {
			if r.Kind == "PodMonitor" {
				if selector := r.Spec.labels(t); !holds(labels, selector) || holds(others, selector) || r.Spec.PodMetricsEndpoints[0].Port != c.Ports[0].Name {
					t.Errorf("the PodMonitor asks port %s of the pods with %v", r.Spec.PodMetricsEndpoints[0].Port, selector)
				}
			}
			if r.Kind != "Service" && r.Kind != "StatefulSet" {
				continue
			}
			var selected []string
			for name, pod := range pods(all) {
				if holds(pod.Metadata.Labels, r.Spec.labels(t)) {
					selected = append(selected, name)
				}
			}
			if len(selected) != 1 || !strings.HasSuffix(selected[0], "/"+r.Metadata.Name) {
				t.Errorf("%s %s selects the pods of %v", r.Kind, r.Metadata.Name, selected)
			}
		}
		policy := one(t, all, "NetworkPolicy", "bridge").Spec.PodSelector.MatchLabels
		if !holds(labels, policy) || !holds(others, policy) {
			t.Errorf("the NetworkPolicy selects %v", policy)
		}
		if port := one(t, all, "Service", "bridge").Spec.Ports[0].TargetPort; port != c.Ports[0].Name {
			t.Errorf("the service leads to port %v", port)
		}
		if n := one(t, all, "PodDisruptionBudget", "bridge").Spec.MaxUnavailable; n != 1 {
			t.Errorf("the budget lets %d pods go at once", n)
		}
		for name, pod := range pods(all) {
			mounted := map[string]bool{}
			for _, volume := range pod.Spec.Volumes {
				mounted[volume.Name] = true
			}
			for _, c := range pod.Spec.Containers {
				for _, mount := range c.VolumeMounts {
					if !mounted[mount.Name] && !strings.HasPrefix(name, "StatefulSet/") {
						t.Errorf("%s: nothing to mount at %s", name, mount.MountPath)
					}
				}
			}
		}
	})
	_ = one(t, resources(t, "everything"), "PodMonitor", "bridge")
}

func holds(labels, selector map[string]string) bool {
	for name, value := range selector {
		if labels[name] != value {
			return false
		}
	}
	return len(selector) > 0
}

// TestReplicasFitTheSessions: a replica beyond the number of sessions has nothing to do.
func TestReplicasFitTheSessions(t *testing.T) {
	each(t, func(t *testing.T, all []resource) {
		d, c := bridgeOf(t, all)
		sessions := environment(t, all, c)["BRIDGE_MQTT_SESSIONS"]
		replicas := d.Spec.Replicas
		for _, r := range all {
			if r.Kind != "HorizontalPodAutoscaler" {
				continue
			}
			if sessions != strconv.Itoa(r.Spec.MaxReplicas) || r.Spec.MinReplicas < 2 || r.Spec.MinReplicas > r.Spec.MaxReplicas {
				t.Errorf("%d to %d replicas, %s sessions", r.Spec.MinReplicas, r.Spec.MaxReplicas, sessions)
			}
			if r.Spec.ScaleTargetRef.Kind != "Deployment" || r.Spec.ScaleTargetRef.Name != "bridge" {
				t.Errorf("it scales %+v", r.Spec.ScaleTargetRef)
			}
			if replicas != nil {
				t.Error("the Deployment names a number of replicas: every apply would undo what the autoscaler did")
			}
			replicas = &r.Spec.MinReplicas
		}
		if replicas == nil {
			t.Fatal("nobody says how many replicas there are")
		}
		if most, _ := strconv.Atoi(sessions); *replicas > most {
			t.Errorf("%d replicas, %s sessions", *replicas, sessions)
		}
	})
}

// TestMigration: the bridge migrates, or the CronJob does, and never neither.
func TestMigration(t *testing.T) {
	each(t, func(t *testing.T, all []resource) {
		d, c := bridgeOf(t, all)
		job := one(t, all, "CronJob", "bridge-migrate")
		migrate := job.Spec.JobTemplate.Spec.Template.Spec.Containers[0]
		off := environment(t, all, c)["BRIDGE_MIGRATE"] == "off"
		if off == job.Spec.Suspend {
			t.Errorf("BRIDGE_MIGRATE off: %v, the CronJob is suspended: %v", off, job.Spec.Suspend)
		}
		// Its Job and the migrations take their time, too.
		const waits = 5 * time.Minute
		if deadline := time.Duration(d.Spec.ProgressDeadlineSeconds) * time.Second; off && (job.Spec.Schedule != "*/5 * * * *" || deadline < 2*waits) {
			t.Errorf("the CronJob runs at %q, and a rollout that waits for it is called a failure after %v", job.Spec.Schedule, deadline)
		}
		if !slices.Equal(migrate.Args, []string{"migrate", "--tables"}) || migrate.Image != c.Image {
			t.Errorf("it runs %s %v, the bridge is %s", migrate.Image, migrate.Args, c.Image)
		}
		if !slices.Equal(migrate.EnvFrom, c.EnvFrom) {
			t.Errorf("the migration has the settings of %v, the bridge of %v", migrate.EnvFrom, c.EnvFrom)
		}
	})
	all := resources(t, "production")
	_, c := bridgeOf(t, all)
	migrate := one(t, all, "CronJob", "bridge-migrate").Spec.JobTemplate.Spec.Template.Spec.Containers[0]
	if as := environment(t, all, migrate)["BRIDGE_DATABASE_URL_FILE"]; as == environment(t, all, c)["BRIDGE_DATABASE_URL_FILE"] {
		t.Errorf("in production the migration logs in as the bridge does, with %s", as)
	}
}

// TestFilesAreMounted: what a setting calls a file lies in something that is mounted.
func TestFilesAreMounted(t *testing.T) {
	each(t, func(t *testing.T, all []resource) {
		for _, name := range []string{"Deployment/bridge", "CronJob/bridge-migrate"} {
			c := pods(all)[name].Spec.Containers[0]
			for variable, file := range environment(t, all, c) {
				if !strings.HasPrefix(variable, "BRIDGE_") || !strings.HasSuffix(variable, "_FILE") {
					continue
				}
				found := false
				for _, mount := range c.VolumeMounts {
					found = found || mount.MountPath == filepath.Dir(file)
				}
				if !found {
					t.Errorf("%s: %s names %s, where nothing is mounted", name, variable, file)
				}
			}
		}
	})
}

// TestSecretsAreNotInTheManifests: only the dev overlay has any, whose passwords say what they are.
func TestSecretsAreNotInTheManifests(t *testing.T) {
	for _, name := range []string{"base", "production", "everything"} {
		all := resources(t, name)
		for _, r := range all {
			if r.Kind == "Secret" {
				t.Errorf("%s holds the Secret %s", name, r.Metadata.Name)
			}
		}
		_, c := bridgeOf(t, all)
		for variable, value := range environment(t, all, c) {
			if strings.HasSuffix(variable, "_PASSWORD") || strings.Contains(value, "postgres://") {
				t.Errorf("%s: %s is in the manifests", name, variable)
			}
		}
	}
}
