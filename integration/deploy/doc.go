// Package deploy tests the Kubernetes manifests: that every overlay is built and valid, what must hold
// of every pod in it, that each setting in it is one that the real binary reads, that its routes
// compile, and that each metric in the alert rules is one that the binary exports.
package deploy
