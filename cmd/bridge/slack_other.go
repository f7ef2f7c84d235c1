//go:build !linux

package main

// slacken does something on Linux alone.
func slacken() {}
