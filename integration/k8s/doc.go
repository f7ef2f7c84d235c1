// Package k8s plays the life of a release on a real Kubernetes cluster: it installs overlays/dev with
// an image of this source, and under a steady load updates, scales, kills, drains and breaks things.
// After each of it, what was published is held against the rows.
//
// Its test needs the build tag kubernetes; `make test-k8s` runs it. With KUBECONFIG it uses that
// cluster and makes and deletes the namespace bridge-dev in it; otherwise it brings up one of its own
// from packages (integration/setup/kubernetes.sh), which takes root and Debian or Ubuntu.
package k8s
