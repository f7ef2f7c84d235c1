//go:build kubernetes

package k8s

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// images are the releases that the tests roll out, tagged by their content.
type images struct {
	first    string // this source
	second   string // the same program, another image
	migrated string // this source with two more migrations
	load     string // integration/k8s/load
}

func buildImages(t *testing.T) images {
	t.Helper()
	made := os.Getenv("BRIDGE_TEST_IMAGE") // of somebody who has just built one
	if made == "" {
		made = "bridge:k8s-test"
		// Built as the image test builds it, so that where both run the layers are there already.
		run(t, "make", "-C", root, "--no-print-directory", "image", "IMAGE="+made, "VERSION=v0.0.0-image-test", "COMMIT=abc1234")
		defer run(t, "docker", "image", "rm", made)
	}
	i := images{first: byContent(t, "bridge", run(t, "docker", "image", "inspect", "--format", "{{.Id}}", made))}
	run(t, "docker", "tag", made, i.first)
	dir := t.TempDir()
	i.second = onTop(t, dir, "bridge", "FROM "+i.first+"\nLABEL release=second\n")
	buildMigrated(t, filepath.Join(dir, "bridge"))
	i.migrated = onTop(t, dir, "bridge", "FROM "+i.first+"\nCOPY bridge /bridge\n")
	build(t, root, filepath.Join(dir, "load"), "./integration/k8s/load")
	t.Cleanup(func() {
		for _, image := range []string{i.first, i.second, i.migrated, i.load} {
			_ = exec.Command("docker", "image", "rm", "--no-prune", image).Run() // the cluster has copies of its own
		}
	})
	i.load = onTop(t, dir, "bridge-load", "FROM scratch\nCOPY load /load\nUSER 65532:65532\nENTRYPOINT [\"/load\"]\n")
	return i
}

// byContent names an image by the hash of what is in it.
func byContent(t *testing.T, name, id string) string {
	t.Helper()
	_, hash, ok := strings.Cut(id, ":")
	if !ok || len(hash) < 12 {
		t.Fatalf("%q is no id of an image", id)
	}
	return name + ":" + hash[:12]
}

// onTop makes an image of a few lines.
func onTop(t *testing.T, dir, name, dockerfile string) string {
	t.Helper()
	must(t, os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(dockerfile), 0o600))
	cmd := exec.CommandContext(t.Context(), "docker", "build", "--quiet", dir)
	cmd.Env = append(os.Environ(), "DOCKER_BUILDKIT=0") // which needs no plugin
	out, err := cmd.Output()
	must(t, err)
	id := strings.TrimSpace(string(out))
	tag := byContent(t, name, id)
	run(t, "docker", "tag", id, tag)
	return tag
}

func build(t *testing.T, dir, out, pkg string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", out, pkg)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", pkg, err, text)
	}
}

// buildMigrated builds the program of a release to come: this one, whose schema is two versions on. As
// every release has to, it leaves the schema usable by the one before.
func buildMigrated(t *testing.T, out string) {
	t.Helper()
	source := t.TempDir()
	for _, name := range []string{"go.mod", "go.sum", "cmd", "health", "ingest", "mapping", "migrations", "store"} {
		run(t, "cp", "-r", filepath.Join(root, name), source)
	}
	present, err := filepath.Glob(filepath.Join(source, "migrations", "*.sql"))
	must(t, err)
	for n, sql := range []string{
		"alter table {{.schema}}.deliveries add column of_a_release_to_come text not null default 'unused';\n",
		"create table {{.schema}}.of_a_release_to_come (n bigint primary key);\n",
	} {
		name := filepath.Join(source, "migrations", fmt.Sprintf("%03d_to_come.sql", len(present)+n+1))
		must(t, os.WriteFile(name, []byte(sql), 0o600))
	}
	build(t, source, out, "./cmd/bridge")
}
