//go:build unix

// Package integration holds the scenarios: the real binary between a real broker and a real
// database, stopped, killed and starved while devices publish, and the tables compared afterwards
// with what was published, row by row. Nothing here knows the inside of the bridge; the scenarios
// see what an operator sees: environment variables, tables, HTTP, logs and exit codes.
package integration
