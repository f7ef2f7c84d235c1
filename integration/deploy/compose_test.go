//go:build unix

package deploy

import (
	"bufio"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
)

// TestCompose: docker-compose.yml starts the bridge with settings that it takes, as safely as the
// manifests do, and mounts files that are there.
func TestCompose(t *testing.T) {
	data, err := os.ReadFile(filepath.Join(root, "docker-compose.yml"))
	if err != nil {
		t.Fatal(err)
	}
	var compose struct {
		Services map[string]struct {
			Image       string
			EnvFile     []string `yaml:"env_file"`
			Environment map[string]string
			StopGrace   string   `yaml:"stop_grace_period"`
			ReadOnly    bool     `yaml:"read_only"`
			CapDrop     []string `yaml:"cap_drop"`
			SecurityOpt []string `yaml:"security_opt"`
			Volumes     []string
			Ports       []string
		}
		Volumes map[string]any
	}
	decoder := yaml.NewDecoder(strings.NewReader(string(data)))
	if err := decoder.Decode(&compose); err != nil {
		t.Fatal(err)
	}
	bridge := compose.Services["bridge"]
	env := map[string]string{}
	for _, name := range bridge.EnvFile {
		file, err := os.Open(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		for lines := bufio.NewScanner(file); lines.Scan(); {
			if name, value, ok := strings.Cut(lines.Text(), "="); ok && !strings.HasPrefix(name, "#") {
				env[name] = value
			}
		}
		_ = file.Close()
	}
	maps.Copy(env, bridge.Environment)
	timeout, err := time.ParseDuration(env["BRIDGE_SHUTDOWN_TIMEOUT"])
	if err != nil {
		t.Fatal(err)
	}
	if grace, err := time.ParseDuration(bridge.StopGrace); err != nil || grace < timeout+5*time.Second {
		t.Errorf("the bridge is killed after %v, it may drain for %v (%v)", grace, timeout, err)
	}
	if !bridge.ReadOnly || !slices.Equal(bridge.CapDrop, []string{"ALL"}) || !slices.Contains(bridge.SecurityOpt, "no-new-privileges:true") {
		t.Errorf("the bridge runs with more than it needs: %+v", bridge)
	}
	takes(t, "docker-compose.yml", env)
	for name, service := range compose.Services {
		if _, tag, ok := strings.Cut(service.Image, ":"); !ok || tag == "latest" {
			t.Errorf("%s: the image %s names no version", name, service.Image)
		}
		for _, volume := range service.Volumes {
			source, _, _ := strings.Cut(volume, ":")
			if _, named := compose.Volumes[source]; named {
				continue
			}
			if _, err := os.Stat(filepath.Join(root, source)); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		for _, port := range service.Ports {
			if !strings.HasPrefix(port, "127.0.0.1:") {
				t.Errorf("%s: port %s is open to everybody", name, port)
			}
		}
	}
}
