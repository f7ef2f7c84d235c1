//go:build kubernetes

package k8s

import (
	"fmt"
	"strings"
	"time"
)

// document is docs/kubernetes-scenarios.md.
func document(version, servers string, own bool, results []result) string {
	var b strings.Builder
	where := "the cluster of KUBECONFIG"
	if own {
		where = "two nodes with real kubelets and containerd, all on one machine (integration/setup/kubernetes.sh)"
	}
	fmt.Fprintf(&b, `# A release's life on Kubernetes

Written by `+"`make test-k8s`"+`, not by hand. Kubernetes %s, %s. `+"`deploy/k8s/overlays/dev`"+`: three replicas, six sessions,
%s, each with a volume.

Before, during and after each event a pod published 1000 messages per second at
QoS 1: every second one is numbered and has an event time, the others are equal to the byte (`+"`21.5`"+`) and carry neither.

| event | how | published | rows | missing | extra | open | sent again | longest pause | longest wait |
|---|---|---|---|---|---|---|---|---|---|
`, strings.TrimPrefix(version, "v"), where, servers)
	for _, r := range results {
		fmt.Fprintf(&b, "| %s | %s | %d | %d | %d | %d | %d | %d | %s | %s |\n", r.what, r.how, r.sent.Numbered+r.sent.Equal, r.rows, r.missing, r.extra,
			r.sent.Open, r.sent.Refused, seconds(r.pause), seconds(r.wait))
	}
	b.WriteString(`
* **published**: messages that the broker acknowledged to the publisher. **missing**: those without a row. **extra**: rows beyond
  one for each message.
* **open**: equal messages whose acknowledgement was lost with the publisher's connection. Each may be there or not; the publisher
  cannot know, and must not send it again. Only the restart of the broker makes any.
* **sent again**: times that the broker answered "no matching subscribers" (0x10). Mosquitto stores sessions over a restart, but
  no shared subscriptions: until the bridge has subscribed again it has nobody to give a message to, and says so. That is
  no acknowledgement, and the publisher repeats the message. A publisher that ignores the answer would lose it.
* **longest pause**: the longest time in which no replica committed anything. **longest wait**: the longest that a numbered message
  took from its publication to its receipt by a bridge; for a killed replica that is the time until another one has taken its
  sessions over. With the broker away it is the time until the bridge has come back to it; with the database away messages are
  received, and wait in the bridge and in the broker.
`)
	b.WriteString(`
Seen in the same run: the server refuses nothing of dev and production (server-side dry run, strict), ` + "`kubectl diff`" + ` after the first apply
of either is empty, no row of a scenario came later, the migration Job started by hand succeeds, and ` + "`overlays/production`" + ` works
beside a broker with TLS and passwords: its pods wait until a Job of the CronJob has migrated as the owner, then write as a role that
can create nothing.
`)
	if own {
		b.WriteString("\nThis cluster accepts network policies and does not enforce them.\n")
	}
	return b.String()
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }
