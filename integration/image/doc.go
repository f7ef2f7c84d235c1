// Package image tests the container image: that the Dockerfile builds, and that what it builds
// runs as an unprivileged user on a read-only file system. Its tests need a Docker engine and the
// build tag docker; `make test-image` runs them.
package image
