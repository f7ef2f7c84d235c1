//go:build kubernetes

package k8s

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// account is what the load tells of a scenario, see ./load.
type account struct {
	Numbered int `json:"numbered"`
	Equal    int `json:"equal"`
	Open     int `json:"open"`
	Refused  int `json:"refused"`
}

// result is a line of the table.
type result struct {
	name           string
	what, how      string
	sent           account
	rows           int
	missing, extra int
	pause, wait    time.Duration
}

// suite is a cluster with the overlay in it.
type suite struct {
	*cluster
	images  images
	dir     string // a copy of deploy/k8s, for editing
	results []result
}

// edit changes one of the files of the overlay, as an operator would.
func (s *suite) edit(t *testing.T, file, old, replacement string) {
	t.Helper()
	path := filepath.Join(s.dir, file)
	text, err := os.ReadFile(path)
	must(t, err)
	if strings.Count(string(text), old) != 1 {
		t.Fatalf("%s does not hold %q once", file, old)
	}
	must(t, os.WriteFile(path, []byte(strings.Replace(string(text), old, replacement, 1)), 0o600))
}

// release sets the image of the overlay and applies it.
func (s *suite) release(t *testing.T, image string) {
	t.Helper()
	path := filepath.Join(s.dir, "overlays/dev/kustomization.yaml")
	text, err := os.ReadFile(path)
	must(t, err)
	const mark = "\nimages:\n"
	rest, _, _ := strings.Cut(string(text), mark)
	_, tag, _ := strings.Cut(image, ":")
	must(t, os.WriteFile(path, []byte(rest+mark+"  - name: bridge\n    newTag: "+strconv.Quote(tag)+"\n"), 0o600))
	s.apply(t)
}

func (s *suite) apply(t *testing.T) {
	t.Helper()
	_, err := s.try(t.Context(), "", "apply", "-k", filepath.Join(s.dir, "overlays/dev"))
	must(t, err)
}

// rowsOf counts what has arrived of a scenario: rows of numbered messages, different numbers among
// them, rows of equal ones.
func (s *suite) rowsOf(ctx context.Context, name string) (numbered, different, equal int, err error) {
	out, err := s.sql(ctx, fmt.Sprintf(`select
		(select count(*) || '|' || count(distinct payload->>'n') from telemetry where device_id like '%[1]s-%%') || '|' ||
		(select count(*) from readings where device_id = '%[1]s')`, name))
	if err == nil {
		_, err = fmt.Sscanf(out, "%d|%d|%d", &numbered, &different, &equal)
	}
	return numbered, different, equal, err
}

// flow waits until n more messages of a scenario have become rows.
func (s *suite) flow(t *testing.T, name string, n int) {
	t.Helper()
	least := -1
	eventually(t, fmt.Sprintf("%d more messages are rows", n), func() (bool, string) {
		numbered, _, equal, err := s.rowsOf(t.Context(), name)
		if err != nil {
			return false, err.Error()
		}
		if least < 0 {
			least = numbered + equal + n
		}
		return numbered+equal >= least, fmt.Sprintf("%d of %d", numbered+equal, least)
	})
}

// some is enough messages to say that they flow: two seconds of them.
const some = 2000

// scenario does something under load and holds what was published against the rows.
func (s *suite) scenario(t *testing.T, name, what, how string, do func(t *testing.T)) {
	t.Helper()
	ok := t.Run(name, func(t *testing.T) {
		begin := s.now(t)
		s.do(t, "exec", "load", "--", "/load", "start", name)
		s.flow(t, name, some)
		do(t)
		s.flow(t, name, some)
		r := result{name: name, what: what, how: how}
		must(t, json.Unmarshal([]byte(s.do(t, "exec", "load", "--", "/load", "stop")), &r.sent))

		var numbered, different, equal int
		eventually(t, "every message is a row", func() (bool, string) {
			var err error
			if numbered, different, equal, err = s.rowsOf(t.Context(), name); err != nil {
				return false, err.Error()
			}
			return different >= r.sent.Numbered && equal >= r.sent.Equal, fmt.Sprintf("%d of %d numbered, %d of %d equal", different, r.sent.Numbered, equal, r.sent.Equal)
		})
		r.rows = numbered + equal
		r.missing = r.sent.Numbered - different + max(0, r.sent.Equal-equal)
		r.extra = numbered - different + max(0, equal-r.sent.Equal-r.sent.Open)
		r.pause, r.wait = s.times(t, name, begin)
		if r.missing != 0 || r.extra != 0 {
			t.Errorf("missing %d, extra %d: %+v", r.missing, r.extra, r)
		}
		t.Logf("%+v", r)
		s.results = append(s.results, r)
	})
	if !ok {
		t.FailNow() // what comes after would stand on it
	}
}

// recount looks again at what was written: a redelivery that came twice may have come long after the
// scenario that was to blame.
func (s *suite) recount(t *testing.T) {
	t.Run("nothing came later", func(t *testing.T) {
		for _, r := range s.results {
			numbered, different, equal, err := s.rowsOf(t.Context(), r.name)
			must(t, err)
			if numbered != r.sent.Numbered || different != numbered || equal < r.sent.Equal || equal > r.sent.Equal+r.sent.Open {
				t.Errorf("%s: in the end there are %d rows of %d numbers, and %d of equal ones: %+v", r.name, numbered, different, equal, r)
			}
		}
	})
}

func (s *suite) now(t *testing.T) string {
	t.Helper()
	out, err := s.sql(t.Context(), "select extract(epoch from now())")
	must(t, err)
	return out
}

// times returns the longest time in which nobody committed anything, and the longest that a numbered
// message waited from its publication to its receipt by a bridge.
func (s *suite) times(t *testing.T, name, begin string) (pause, wait time.Duration) {
	t.Helper()
	out, err := s.sql(t.Context(), fmt.Sprintf(`select
		(select round(1000 * max(gap)) from (
			select extract(epoch from committed_at - lag(committed_at) over (order by committed_at)) as gap
			from bridge.deliveries where committed_at >= to_timestamp(%s)) g) || '|' ||
		(select round(1000 * extract(epoch from max(received_at - "time"))) from telemetry where device_id like '%s-%%')`, begin, name))
	must(t, err)
	var p, w int
	if _, err := fmt.Sscanf(out, "%d|%d", &p, &w); err != nil {
		t.Fatalf("%q: %v", out, err)
	}
	return time.Duration(p) * time.Millisecond, time.Duration(w) * time.Millisecond
}

func TestKubernetes(t *testing.T) {
	s := &suite{images: buildImages(t), dir: filepath.Join(t.TempDir(), "k8s")}
	s.cluster = openCluster(t)
	for _, name := range []string{dev, "bridge"} { // they are deleted in the end
		if out, err := s.try(t.Context(), "", "get", "namespace", name, "--ignore-not-found", "-o", "name"); err != nil || out != "" {
			t.Fatalf("the cluster has a namespace %s already, or does not answer: %s %v", name, out, err)
		}
	}
	s.load(t, s.images.first, s.images.second, s.images.migrated, s.images.load)
	if s.own {
		s.load(t, "postgres:15", "eclipse-mosquitto:2")
	}
	run(t, "cp", "-r", filepath.Join(root, "deploy/k8s"), s.dir)

	t.Cleanup(func() {
		if t.Failed() {
			for _, args := range [][]string{{"get", "pods,events", "-o", "wide"}, {"logs", "-l", "app.kubernetes.io/name=bridge", "--tail=30", "--prefix"}} {
				out, err := s.try(context.Background(), "", append([]string{"-n", dev}, args...)...)
				t.Log(out, err)
			}
		}
		if !s.own {
			_, err := s.try(context.Background(), "", "delete", "namespace", dev, "--ignore-not-found")
			if err != nil {
				t.Error(err)
			}
		}
	})

	s.install(t)
	s.validate(t)
	s.migrateByHand(t)
	s.play(t)
	s.production(t)
	s.recount(t)
	s.write(t)
}

// install applies the overlay to the empty cluster and waits for the first rows.
func (s *suite) install(t *testing.T) {
	began := time.Now()
	s.release(t, s.images.first)
	s.awaitRollout(t)
	ready := time.Since(began)
	load, err := os.ReadFile("testdata/load.yaml")
	must(t, err)
	_, err = s.try(t.Context(), strings.ReplaceAll(string(load), "IMAGE", s.images.load), "-n", dev, "apply", "-f", "-")
	must(t, err)
	s.do(t, "wait", "--for=condition=Ready", "pod/load", "--timeout=60s")
	s.scenario(t, "install", "`kubectl apply -k deploy/k8s/overlays/dev`", fmt.Sprintf("an empty cluster; three replicas ready after %s", ready.Round(time.Second)), func(*testing.T) {})
}

// validate asks the server for its opinion of every overlay.
func (s *suite) validate(t *testing.T) {
	t.Run("server accepts", func(t *testing.T) {
		for _, overlay := range []string{"overlays/dev", "overlays/production"} {
			// The namespace would have to be there for the rest to be tried in it.
			if overlay == "overlays/production" {
				_, err := s.try(t.Context(), "", "create", "namespace", "bridge")
				must(t, err)
				defer func() {
					_, err := s.try(context.WithoutCancel(t.Context()), "", "delete", "namespace", "bridge")
					must(t, err)
				}()
			}
			out, err := s.try(t.Context(), "", "apply", "--server-side", "--dry-run=server", "--validate=strict", "--force-conflicts", "-k", filepath.Join(s.dir, overlay))
			if err != nil {
				t.Errorf("%s: %v", overlay, err)
			}
			t.Log(out)
		}
	})
	t.Run("nothing differs after apply", func(t *testing.T) {
		s.same(t, "overlays/dev")
	})
}

// same holds an overlay that was applied against what the cluster has.
func (s *suite) same(t *testing.T, overlay string) {
	t.Helper()
	out, err := s.try(t.Context(), "", "diff", "-k", filepath.Join(s.dir, overlay))
	must(t, unlessDifferent(err))
	if out != "" {
		t.Errorf("kubectl diff -k %s says:\n%s", overlay, out)
	}
}

// migrateByHand starts the migration that the overlay has suspended, as an operator would.
func (s *suite) migrateByHand(t *testing.T) {
	t.Run("migration by hand", func(t *testing.T) {
		s.do(t, "create", "job", "--from=cronjob/bridge-migrate", "by-hand")
		s.do(t, "wait", "--for=condition=Complete", "job/by-hand", "--timeout="+patience.String())
		if log := s.do(t, "logs", "job/by-hand"); !strings.Contains(log, "0 applied, up to date") || !strings.Contains(log, "route telemetry: table telemetry fits") {
			t.Errorf("it says:\n%s", log)
		}
	})
}

// long says that the table is wanted, with everything there is. The build machine leaves out what other
// scenarios show as well, or what takes its time.
func (s *suite) long() bool { return os.Getenv("K8S_DOC") != "" }

func (s *suite) play(t *testing.T) {
	s.scenario(t, "update", "rolling update of three replicas", "another image", func(t *testing.T) {
		s.release(t, s.images.second)
		s.awaitRollout(t)
	})
	if s.long() {
		s.scenario(t, "rollback", "rollback", "`kubectl rollout undo`", func(t *testing.T) {
			s.do(t, "rollout", "undo", "deployment/bridge")
			s.awaitRollout(t)
			s.release(t, s.images.first) // which is what runs again
		})
		s.scenario(t, "standby", "scale 3 → 7 → 3", "one more than there are sessions: the hot standby is ready", func(t *testing.T) {
			s.do(t, "scale", "deployment/bridge", "--replicas=7")
			s.awaitBridges(t, 7)
			s.do(t, "scale", "deployment/bridge", "--replicas=3")
			s.awaitBridges(t, 3)
		})
	}
	s.scenario(t, "scale", "scale 3 → 1 → 3", "`kubectl scale`", func(t *testing.T) {
		s.do(t, "scale", "deployment/bridge", "--replicas=1")
		s.awaitBridges(t, 1)
		s.flow(t, "scale", some)
		s.do(t, "scale", "deployment/bridge", "--replicas=3")
		s.awaitBridges(t, 3)
	})
	s.scenario(t, "delete", "a pod deleted by force", "`kubectl delete pod --force --grace-period=0`", func(t *testing.T) {
		s.do(t, "delete", "pod", s.bridges(t)[0].Metadata.Name, "--force", "--grace-period=0")
		s.awaitBridges(t, 3)
	})
	if s.own { // killing takes hands on the node
		s.scenario(t, "kill", "`kill -9` of the process in a pod", "the kubelet starts it again", func(t *testing.T) {
			s.signal(t, "SIGKILL")
		})
	} else {
		t.Run("kill", func(t *testing.T) { t.Skip("the nodes of somebody else's cluster cannot be entered") })
	}
	if s.own && s.long() { // it takes the liveness probe and the grace period, a minute and more
		s.scenario(t, "hang", "the process in a pod hangs (`kill -STOP`)", "another pod takes its sessions; the liveness probe has it started again", func(t *testing.T) {
			s.signal(t, "SIGSTOP")
		})
	}
	if s.own {
		s.lost(t)
	}
	s.drain(t)
	s.badRelease(t)
	if s.long() {
		s.wrongBroker(t)
	}
	s.outage(t, "broker", "mosquitto-0", "broker pod restarted", "deleted in good order; no bridge restarts")
	s.outage(t, "database", "postgres-0", "database pod restarted", "deleted in good order; no bridge restarts")
	s.routes(t)
	how := "old and new pods side by side"
	if s.long() {
		how += ", after 20 s in which a reader kept the table from being changed"
	}
	s.scenario(t, "migrate", "a release with two more migrations", how, func(t *testing.T) {
		before, err := s.sql(t.Context(), "select version from bridge.schema_migrations")
		must(t, err)
		if s.long() {
			s.releaseBehindReader(t, before)
		} else {
			s.release(t, s.images.migrated)
		}
		eventually(t, "a new pod works beside an old one", func() (bool, string) {
			pods := readyOnes(s.bridges(t))
			revisions := map[string]bool{}
			for _, p := range pods {
				revisions[p.Metadata.Name[:strings.LastIndex(p.Metadata.Name, "-")]] = true
			}
			return len(revisions) == 2, fmt.Sprint(revisions)
		})
		s.awaitRollout(t)
		after, err := s.sql(t.Context(), "select version from bridge.schema_migrations")
		must(t, err)
		was, _ := strconv.Atoi(before)
		if after != strconv.Itoa(was+2) {
			t.Errorf("the schema went from version %s to %s", before, after)
		}
	})
	s.scenario(t, "unmigrate", "rollback behind these migrations", "`kubectl rollout undo`; the schema stays", func(t *testing.T) {
		s.do(t, "rollout", "undo", "deployment/bridge")
		s.awaitRollout(t)
	})
}

// signal sends a signal to the process in a pod and waits until the kubelet has started it again.
func (s *suite) signal(t *testing.T, signal string) {
	t.Helper()
	victim := s.bridges(t)[0]
	run(t, "../setup/kubernetes.sh", "kill", victim.Spec.NodeName, victim.Status.ContainerStatuses[0].ContainerID, signal)
	eventually(t, "the container is started again", func() (bool, string) {
		for _, p := range s.bridges(t) {
			if p.Metadata.Name == victim.Metadata.Name && p.restarts() > victim.restarts() {
				return true, ""
			}
		}
		return false, "it is not"
	})
	s.awaitBridges(t, 3)
}

// spare is a node with bridges on it and neither broker nor database, and how many there are. Where the
// pods are is the scheduler's choice; on a cluster of our own it is helped. Empty: there is none.
func (s *suite) spare(t *testing.T) (node string, bridges int) {
	t.Helper()
	counts := map[string]int{}
	for _, p := range s.bridges(t) {
		counts[p.Spec.NodeName]++
	}
	var broker, database pod
	must(t, json.Unmarshal([]byte(s.do(t, "get", "pod", "mosquitto-0", "-o", "json")), &broker))
	must(t, json.Unmarshal([]byte(s.do(t, "get", "pod", "postgres-0", "-o", "json")), &database))
	delete(counts, broker.Spec.NodeName)
	delete(counts, database.Spec.NodeName)
	for name, n := range counts {
		return name, n
	}
	if !s.own {
		return "", 0
	}
	s.move(t, broker.Spec.NodeName)
	return s.spare(t)
}

// move makes one of the bridges on a node go to another.
func (s *suite) move(t *testing.T, node string) {
	t.Helper()
	pods := s.bridges(t)
	i := slices.IndexFunc(pods, func(p pod) bool { return p.Spec.NodeName == node })
	if i < 0 {
		t.Fatalf("there is no bridge on %s", node)
	}
	defer s.cordon(t, node)()
	s.do(t, "delete", "pod", pods[i].Metadata.Name)
	s.awaitBridges(t, 3)
}

// cordon keeps new pods from a node until the returned function is called. Whatever becomes of the test, the
// node is to be used again.
func (s *suite) cordon(t *testing.T, node string) (uncordon func()) {
	t.Helper()
	_, err := s.try(t.Context(), "", "cordon", node)
	must(t, err)
	return func() {
		_, err := s.try(context.WithoutCancel(t.Context()), "", "uncordon", node)
		must(t, err)
	}
}

// lost cuts a node off, as if its power had gone: nobody gets an answer from it, not even a refusal.
func (s *suite) lost(t *testing.T) {
	node, n := s.spare(t)
	if n == 3 {
		s.move(t, node)
		n--
	}
	until := "for some seconds"
	if s.long() {
		until = "until Kubernetes calls it not ready"
	}
	s.scenario(t, "lost", "node lost", fmt.Sprintf("cut off from the network with %d of three replicas on it, %s; then joined again", n, until), func(t *testing.T) {
		func() {
			run(t, "../setup/kubernetes.sh", "unplug")
			defer run(t, "../setup/kubernetes.sh", "plug")
			s.flow(t, "lost", 5*some)
			if s.long() {
				_, err := s.try(t.Context(), "", "wait", "--for=condition=Ready=Unknown", "node/"+node, "--timeout="+patience.String())
				must(t, err)
				s.flow(t, "lost", some)
			}
		}()
		s.awaitBridges(t, 3)
	})
}

// drain empties the node that holds no volume, one bridge at a time.
func (s *suite) drain(t *testing.T) {
	node, n := s.spare(t)
	if node == "" && s.own {
		t.Error("no bridge runs on a node without broker and database")
		return
	}
	if node == "" {
		t.Run("drain", func(t *testing.T) { t.Skip("no bridge runs on a node without broker and database") })
		return
	}
	s.scenario(t, "drain", "node drained", fmt.Sprintf("`kubectl drain`, with %d of three replicas on it and a budget of one", n), func(t *testing.T) {
		defer s.cordon(t, node)()
		_, err := s.try(t.Context(), "", "drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--pod-selector=app.kubernetes.io/name=bridge", "--timeout="+patience.String())
		must(t, err)
		s.awaitBridges(t, 3)
		for _, p := range s.bridges(t) {
			if p.Spec.NodeName == node {
				t.Errorf("%s is on the drained node", p.Metadata.Name)
			}
		}
	})
}

// badRelease rolls out a setting that the bridge refuses.
func (s *suite) badRelease(t *testing.T) {
	s.scenario(t, "bad-release", "a release that cannot start", "a misspelt setting: the new pod fails, the old ones go on; then mended", func(t *testing.T) {
		const file, good, bad = "base/bridge.env", "BRIDGE_MQTT_SESSIONS=6", "BRIDGE_MQTT_SESIONS=6"
		old := readyOnes(s.bridges(t))
		s.edit(t, file, good, bad)
		s.apply(t)
		eventually(t, "the new pod has failed twice", func() (bool, string) {
			pods := s.bridges(t)
			return slices.ContainsFunc(pods, func(p pod) bool { return p.restarts() >= 1 && !p.ready() }), fmt.Sprintf("%d pods", len(pods))
		})
		s.flow(t, "bad-release", some)
		now := readyOnes(s.bridges(t))
		for _, p := range old {
			if !slices.ContainsFunc(now, func(q pod) bool { return q.Metadata.Name == p.Metadata.Name && q.restarts() == p.restarts() }) {
				t.Errorf("%s did not go on", p.Metadata.Name)
			}
		}
		s.edit(t, file, bad, good)
		s.apply(t)
		s.awaitRollout(t)
		s.awaitBridges(t, 3)
	})
}

// wrongBroker rolls out a broker's address at which nobody answers, while each replica holds two sessions and
// while each holds one.
func (s *suite) wrongBroker(t *testing.T) {
	const overlay, file, good, bad = "overlays/dev/kustomization.yaml", "overlays/dev/bridge.env", "mqtt://mosquitto:1883", "mqtt://mosquitto:1884"
	s.scenario(t, "wrong-broker", "a release with a wrong broker address", "to three replicas and to six: the new pods stand back, the old ones go on; then mended", func(t *testing.T) {
		for _, replicas := range []int{3, 6} {
			if replicas != 3 {
				s.edit(t, overlay, "count: 3", "count: 6")
				s.apply(t)
				s.awaitBridges(t, replicas)
			}
			old := readyOnes(s.bridges(t))
			isOld := func(p pod) bool {
				return slices.ContainsFunc(old, func(q pod) bool { return q.Metadata.Name == p.Metadata.Name && q.restarts() == p.restarts() })
			}
			s.edit(t, file, good, bad)
			s.apply(t)
			eventually(t, "a new pod says why it is not ready", func() (bool, string) {
				for _, p := range s.bridges(t) {
					log, err := s.try(t.Context(), "", "-n", dev, "logs", p.Metadata.Name)
					if !isOld(p) && err == nil && strings.Contains(log, "standing back: other replicas do the work") {
						return true, ""
					}
				}
				return false, "none does"
			})
			s.flow(t, "wrong-broker", 10*some)
			if now := readyOnes(s.bridges(t)); len(now) != replicas || slices.ContainsFunc(now, func(p pod) bool { return !isOld(p) }) {
				t.Errorf("ready are %d pods, want the %d old ones as they were: %+v", len(now), replicas, now)
			}
			s.edit(t, file, bad, good)
			s.apply(t)
			s.awaitRollout(t)
			s.awaitBridges(t, replicas)
		}
		s.edit(t, overlay, "count: 6", "count: 3")
		s.apply(t)
		s.awaitBridges(t, 3)
	})
}

// releaseBehindReader rolls the migrations out while somebody reads the table that they change. The old pods go on
// meanwhile, for a migration does not stand in the line of those who wait for the reader.
func (s *suite) releaseBehindReader(t *testing.T, version string) {
	t.Helper()
	reading := make(chan error, 1)
	go func() {
		_, err := s.sql(t.Context(), "select count(*) from bridge.deliveries; select pg_sleep(20)") // one transaction
		reading <- err
	}()
	held := func() string {
		n, err := s.sql(t.Context(), "select count(*) from pg_locks where relation = 'bridge.deliveries'::regclass and mode = 'AccessShareLock' and virtualtransaction in (select virtualtransaction from pg_locks l join pg_stat_activity a using (pid) where a.wait_event = 'PgSleep')")
		must(t, err)
		return n
	}
	eventually(t, "the reader reads", func() (bool, string) { n := held(); return n != "0", n })
	s.release(t, s.images.migrated)
	s.flow(t, "migrate", 5*some)
	if now, err := s.sql(t.Context(), "select version from bridge.schema_migrations"); err != nil || held() != "0" && now != version {
		t.Errorf("the schema has version %s beside the reader: %v", now, err)
	}
	must(t, <-reading)
}

// outage restarts the pod of a server that the bridge needs.
func (s *suite) outage(t *testing.T, name, victim, what, how string) {
	s.scenario(t, name, what, how, func(t *testing.T) {
		before := s.bridges(t)
		s.do(t, "delete", "pod", victim) // returns when it is gone
		s.do(t, "wait", "--for=create", "pod/"+victim, "--timeout="+patience.String())
		s.do(t, "wait", "--for=condition=Ready", "pod/"+victim, "--timeout="+patience.String())
		s.awaitBridges(t, 3)
		for _, p := range s.bridges(t) {
			if !slices.ContainsFunc(before, func(q pod) bool { return q.Metadata.Name == p.Metadata.Name && q.restarts() == p.restarts() }) {
				t.Errorf("%s was restarted", p.Metadata.Name)
			}
		}
	})
}

// routes adds a route by editing the one file.
func (s *suite) routes(t *testing.T) {
	s.scenario(t, "routes", "a route added", "routes.env edited and applied; its table appears", func(t *testing.T) {
		s.edit(t, "base/routes.env", "BRIDGE_ROUTES=telemetry,readings\n", "BRIDGE_ROUTES=telemetry,readings,alarms\nBRIDGE_ROUTE_ALARMS_TOPIC=alarms/{device_id}\n")
		s.apply(t)
		s.awaitRollout(t)
		s.do(t, "exec", "mosquitto-0", "--", "mosquitto_pub", "-t", "alarms/kitchen", "-q", "1", "-m", `{"smoke":true}`)
		eventually(t, "the alarm is a row", func() (bool, string) {
			out, err := s.sql(t.Context(), "select count(*) from alarms")
			return err == nil && out == "1", fmt.Sprint(out, err)
		})
	})
}

// write puts the table into the document that K8S_DOC names.
func (s *suite) write(t *testing.T) {
	path := os.Getenv("K8S_DOC")
	if path == "" {
		return
	}
	version, err := s.try(t.Context(), "", "version", "-o", "json")
	must(t, err)
	var v struct {
		ServerVersion struct {
			GitVersion string `json:"gitVersion"`
		} `json:"serverVersion"`
	}
	must(t, json.Unmarshal([]byte(version), &v))
	broker := s.do(t, "exec", "mosquitto-0", "--", "mosquitto_sub", "-t", "$SYS/broker/version", "-C", "1", "-W", "5")
	database, err := s.sql(t.Context(), "select split_part(current_setting('server_version'), ' ', 1)")
	must(t, err)
	servers := fmt.Sprintf("Mosquitto %s and PostgreSQL %s", strings.TrimSpace(strings.TrimPrefix(broker, "mosquitto version ")), database)
	must(t, os.WriteFile(path, []byte(document(v.ServerVersion.GitVersion, servers, s.own, s.results)), 0o644))
}
