package main

import (
	"context"
	"fmt"
	"runtime"
	"runtime/debug"
)

// version and commit are set by the linker: -X main.version=v1.2.3 -X main.commit=0123abc.
var version, commit string

// buildInfo returns them, or what the Go toolchain knows where the linker was told nothing.
func buildInfo() (v, c string) {
	v, c = version, commit
	info, ok := debug.ReadBuildInfo()
	if ok && v == "" {
		v = info.Main.Version
	}
	if ok && c == "" {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				c = s.Value
			}
		}
	}
	if v == "" {
		v = "(devel)"
	}
	if c == "" {
		c = "unknown"
	}
	return v, c
}

func versionCommand(_ context.Context, args []string, std streams) error {
	if _, err := parse(newFlags("version"), args, std); err != nil {
		return err
	}
	v, c := buildInfo()
	fmt.Fprintf(std.out, "bridge %s commit %s %s %s/%s\n", v, c, runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return nil
}
