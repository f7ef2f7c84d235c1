//go:build kubernetes

package k8s

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// production installs overlays/production beside a broker with TLS and passwords and a database with the
// two roles, and sees a message through.
func (s *suite) production(t *testing.T) {
	ok := t.Run("production", func(t *testing.T) {
		p := s.in("bridge")
		_, err := s.try(t.Context(), "", "create", "namespace", p.namespace)
		must(t, err)
		defer func() {
			_, err := s.try(context.WithoutCancel(t.Context()), "", "delete", "namespace", p.namespace, "--wait=false")
			must(t, err)
		}()
		s.roles(t)
		caFile, certFile, keyFile := certificates(t, "mosquitto")
		const database = "postgres://%s:change-me@postgres." + dev + ":5432/production"
		p.secret(t, "bridge", map[string]string{"database-url": fmt.Sprintf(database, "bridge_writer"), "mqtt-username": "bridge", "mqtt-password": "bridge's"})
		p.secret(t, "bridge-owner", map[string]string{"database-url": fmt.Sprintf(database, "bridge_owner")})
		p.secret(t, "bridge-mqtt-tls", map[string]string{"ca.crt": caFile})
		p.secret(t, "mosquitto", map[string]string{
			"ca.crt": caFile, "tls.crt": certFile, "tls.key": keyFile, "passwords": passwords(t, "bridge", "bridge's", "device", "device's"),
			"mosquitto.conf": "listener 8883\ncertfile /mosquitto/config/tls.crt\nkeyfile /mosquitto/config/tls.key\n" +
				"allow_anonymous false\npassword_file /mosquitto/config/passwords\nmax_queued_messages 0\n",
		})
		broker, err := os.ReadFile("testdata/broker.yaml")
		must(t, err)
		_, err = s.try(t.Context(), string(broker), "-n", p.namespace, "apply", "-f", "-")
		must(t, err)
		p.do(t, "wait", "--for=condition=Ready", "pod/mosquitto", "--timeout="+patience.String())

		name, tag, _ := strings.Cut(s.images.first, ":")
		s.edit(t, "overlays/production/kustomization.yaml", "newName: registry.example.com/bridge\n    newTag: v1.0.0", fmt.Sprintf("newName: %s\n    newTag: %q", name, tag))
		s.edit(t, "overlays/production/bridge.env", "broker.example.com", "mosquitto")
		// Started by hand below: by itself it may come before the bridges.
		s.edit(t, "base/migrate.yaml", `schedule: "*/5 * * * *"`, `schedule: "0 0 1 1 *"`)
		_, err = s.try(t.Context(), "", "apply", "-k", filepath.Join(s.dir, "overlays/production"))
		must(t, err)

		// The autoscaler has no metrics here; the least number it sees to all the same.
		eventually(t, "three bridges wait for the migration", func() (bool, string) {
			pods := p.bridges(t)
			running := 0
			for _, pod := range pods {
				if c := pod.Status.ContainerStatuses; len(c) == 1 && c[0].ContainerID != "" && !c[0].Ready {
					running++
				}
			}
			return running == 3, fmt.Sprintf("%d of %d run", running, len(pods))
		})
		s.same(t, "overlays/production") // although the autoscaler has set the number of replicas
		p.do(t, "create", "job", "--from=cronjob/bridge-migrate", "now")
		p.do(t, "wait", "--for=condition=Complete", "job/now", "--timeout="+patience.String())
		p.awaitBridges(t, 3)
		p.do(t, "exec", "mosquitto", "--", "mosquitto_pub", "-h", "mosquitto", "-p", "8883", "--cafile", "/mosquitto/config/ca.crt",
			"-u", "device", "-P", "device's", "-q", "1", "-t", "readings/kitchen/temperature", "-m", "21.5")
		eventually(t, "the reading is a row, in a table of the owner, written by the writer", func() (bool, string) {
			out, err := s.try(t.Context(), "", "-n", dev, "exec", "postgres-0", "--", "psql", "-U", "telemetry", "-d", "production", "-qAtXc", `select
				(select count(*) from readings where value = 21.5) || ' ' ||
				(select tableowner from pg_tables where schemaname = 'public' and tablename = 'readings') || ' ' ||
				(select string_agg(distinct usename, ' ') from pg_stat_activity where datname = current_database() and application_name = 'bridge')`)
			return strings.TrimSpace(out) == "1 bridge_owner bridge_writer", fmt.Sprint(out, err)
		})
	})
	if !ok {
		t.FailNow()
	}
}

// roles makes a database with the roles of the overlay.
func (s *suite) roles(t *testing.T) {
	t.Helper()
	_, err := s.sql(t.Context(), "create database production")
	must(t, err)
	roles, err := os.ReadFile(filepath.Join(s.dir, "overlays/production/roles.sql"))
	must(t, err)
	_, err = s.try(t.Context(), string(roles), "-n", dev, "exec", "-i", "postgres-0", "--", "psql", "-U", "telemetry", "-d", "production", "-v", "ON_ERROR_STOP=1", "-q")
	must(t, err)
}

func (c *cluster) secret(t *testing.T, name string, data map[string]string) {
	t.Helper()
	object, err := json.Marshal(map[string]any{"apiVersion": "v1", "kind": "Secret", "metadata": map[string]string{"name": name}, "stringData": data})
	must(t, err)
	_, err = c.try(t.Context(), string(object), "-n", c.namespace, "apply", "-f", "-")
	must(t, err)
}

// passwords is a password file of Mosquitto, for pairs of user and password.
func passwords(t *testing.T, pairs ...string) string {
	t.Helper()
	var lines strings.Builder
	for i := 0; i < len(pairs); i += 2 {
		salt := make([]byte, 12)
		_, _ = rand.Read(salt)
		const rounds = 101
		hash, err := pbkdf2.Key(sha512.New, pairs[i+1], salt, rounds, sha512.Size)
		must(t, err)
		fmt.Fprintf(&lines, "%s:$7$%d$%s$%s\n", pairs[i], rounds, base64.StdEncoding.EncodeToString(salt), base64.StdEncoding.EncodeToString(hash))
	}
	return lines.String()
}

// certificates are an authority's, and a server's with its key, in PEM.
func certificates(t *testing.T, host string) (ca, cert, key string) {
	t.Helper()
	authority, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	root := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	rootDER, err := x509.CreateCertificate(rand.Reader, root, root, authority.Public(), authority)
	must(t, err)
	secret, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: host}, DNSNames: []string{host}, NotAfter: root.NotAfter, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, root, secret.Public(), authority)
	must(t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(secret)
	must(t, err)
	encode := func(kind string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	return encode("CERTIFICATE", rootDER), encode("CERTIFICATE", leafDER), encode("PRIVATE KEY", keyDER)
}
