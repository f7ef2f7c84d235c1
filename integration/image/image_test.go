//go:build docker

package image

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const (
	tag     = "bridge:image-test"
	version = "v0.0.0-image-test"

	// sizeLimit is about twice what the image has today. A dependency that brings a whole client
	// library of something else, or a base image with a distribution in it, goes beyond.
	sizeLimit = 60 << 20
)

func docker(t *testing.T, args ...string) (stdout string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(t.Context(), "docker", args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if cmd.ProcessState == nil {
		t.Fatalf("docker %s: %v", strings.Join(args, " "), err)
	}
	if err != nil {
		t.Logf("docker %s: %v\n%s", strings.Join(args, " "), err, errs.String())
	}
	return out.String(), cmd.ProcessState.ExitCode()
}

func TestImage(t *testing.T) {
	build := exec.CommandContext(t.Context(), "make", "--no-print-directory", "image", "IMAGE="+tag, "VERSION="+version, "COMMIT=abc1234")
	build.Dir = "../.."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("make image: %v\n%s", err, out)
	}
	t.Cleanup(func() {
		// By command: the test's context has ended here. The layers stay, for the next build of the same.
		if out, err := exec.Command("docker", "image", "rm", "--force", "--no-prune", tag).CombinedOutput(); err != nil {
			t.Errorf("remove the image: %v\n%s", err, out)
		}
	})

	// As Kubernetes would run it under the restricted policy.
	strict := []string{"run", "--rm", "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--network=none"}

	t.Run("says its version", func(t *testing.T) {
		out, code := docker(t, append(strict, tag, "version")...)
		if code != 0 || !strings.Contains(out, version) || !strings.Contains(out, "abc1234") {
			t.Errorf("exit code %d, output %q", code, out)
		}
	})
	t.Run("does not run as root and has a health check without a shell", func(t *testing.T) {
		out, _ := docker(t, "image", "inspect", tag)
		var images []struct {
			Size   int64 `json:"Size"`
			Config struct {
				User        string `json:"User"`
				Healthcheck struct {
					Test []string `json:"Test"`
				} `json:"Healthcheck"`
				Labels map[string]string `json:"Labels"`
			} `json:"Config"`
		}
		if err := json.Unmarshal([]byte(out), &images); err != nil || len(images) != 1 {
			t.Fatalf("%d images, %v", len(images), err)
		}
		image := images[0]
		if image.Config.User != "65532:65532" {
			t.Errorf("the user is %q; it has to be a number, and not 0", image.Config.User)
		}
		if got := strings.Join(image.Config.Healthcheck.Test, " "); got != "CMD /bridge probe" {
			t.Errorf("the health check is %q", got)
		}
		if got := image.Config.Labels["org.opencontainers.image.version"]; got != version {
			t.Errorf("the version label is %q", got)
		}
		if image.Size > sizeLimit {
			t.Errorf("the image has %d bytes, more than %d", image.Size, sizeLimit)
		}
		t.Logf("%d bytes", image.Size)
	})
	t.Run("tells what it is made of", func(t *testing.T) {
		cmd := exec.CommandContext(t.Context(), "make", "--no-print-directory", "sbom", "VERSION="+version)
		cmd.Dir = "../.."
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("make sbom: %v\n%s", err, out)
		}
		data, err := os.ReadFile("../../bin/bridge.cdx.json")
		if err != nil {
			t.Fatal(err)
		}
		var bill struct {
			BOMFormat  string `json:"bomFormat"`
			Components []struct {
				Name string `json:"name"`
				PURL string `json:"purl"`
			} `json:"components"`
		}
		if err := json.Unmarshal(data, &bill); err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, component := range bill.Components {
			names = append(names, component.Name)
			if !strings.HasPrefix(component.PURL, "pkg:golang/") {
				t.Errorf("%s has the address %q", component.Name, component.PURL)
			}
		}
		for _, want := range []string{"std", "github.com/jackc/pgx/v5", "github.com/eclipse/paho.golang"} {
			if !slices.Contains(names, want) {
				t.Errorf("%s is not among %v", want, names)
			}
		}
		if bill.BOMFormat != "CycloneDX" || slices.Contains(names, "github.com/testcontainers/testcontainers-go") {
			t.Errorf("the bill is of the format %q, and lists %v", bill.BOMFormat, names)
		}
	})
	t.Run("has no shell", func(t *testing.T) {
		if _, code := docker(t, append(strict, "--entrypoint=/bin/sh", tag, "-c", "true")...); code != 127 {
			t.Errorf("exit code %d, want 127 (not found)", code)
		}
	})
	t.Run("a probe of nobody fails", func(t *testing.T) {
		if _, code := docker(t, append(strict, tag, "probe")...); code != 1 {
			t.Errorf("exit code %d, want 1", code)
		}
	})
}
