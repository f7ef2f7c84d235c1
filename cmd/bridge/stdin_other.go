//go:build !unix

package main

import "os"

// holdsBytes is not known without a risk to wait.
func holdsBytes(*os.File) bool { return false }
