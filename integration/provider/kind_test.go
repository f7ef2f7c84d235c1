//go:build unix

package provider

import (
	"errors"
	"strings"
	"testing"
)

func TestChoose(t *testing.T) {
	var (
		there   = func() error { return nil }
		engine  = func() error { return errors.New("engine is down") }
		program = func() error { return errors.New("mosquitto is missing") }
	)
	tests := []struct {
		name             string
		wanted           string
		ci               bool
		engine, programs func() error
		want             Kind
		wantErr          []string // what the sentence must tell
	}{
		{name: "containers are preferred", engine: there, programs: there, want: Containers},
		{name: "programs when no engine answers", engine: engine, programs: there, want: Processes},
		{name: "neither", engine: engine, programs: program, wantErr: []string{"engine is down", "mosquitto is missing", "install"}},
		{name: "programs on request", wanted: "processes", engine: there, programs: there, want: Processes},
		{name: "programs on request, missing", wanted: "processes", engine: there, programs: program, wantErr: []string{"mosquitto is missing"}},
		{name: "containers on request, no engine", wanted: "containers", engine: engine, programs: there, wantErr: []string{"engine is down"}},
		{name: "a build machine has an engine", ci: true, engine: there, programs: program, want: Containers},
		{name: "a build machine without an engine", ci: true, engine: engine, programs: there, wantErr: []string{"CI=true", "engine is down"}},
		{name: "a build machine runs the programs too", wanted: "processes", ci: true, engine: engine, programs: there, want: Processes},
		{name: "a typo", wanted: "process", engine: there, programs: there, wantErr: []string{`"process"`}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := choose(test.wanted, test.ci, test.engine, test.programs)
			if got != test.want || (err != nil) != (test.wantErr != nil) {
				t.Fatalf("got %q, %v; want %q", got, err, test.want)
			}
			for _, words := range test.wantErr {
				if !strings.Contains(err.Error(), words) {
					t.Errorf("the error does not say %q: %v", words, err)
				}
			}
		})
	}
}
