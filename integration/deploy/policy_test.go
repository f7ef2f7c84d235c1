//go:build unix

package deploy

import (
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
			if !no(p.AutomountToken) {
				t.Errorf("%s: the pod gets a token for the API", name)
			}
			if !no(p.ServiceLinks) {
				t.Errorf("%s: the pod gets a variable for each Service", name)
			}
			for _, c := range slices.Concat(p.InitContainers, p.Containers) {
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
		}
		limits := map[string]string{}
		for _, variable := range c.Env {
			limits[variable.Name] = variable.ValueFrom.ResourceFieldRef.Resource
		}
		if limits["GOMEMLIMIT"] != "requests.memory" || limits["GOMAXPROCS"] != "limits.cpu" {
			t.Errorf("the limits of Go come from %v", limits)
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
			t.Error("nobody says how many replicas there are")
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
