// Package deploy tests the Kubernetes manifests against the real binary: that every setting in
// them is one that the bridge reads, and that its routes compile.
package deploy
