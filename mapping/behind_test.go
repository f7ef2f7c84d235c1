package mapping

import (
	"slices"
	"testing"
)

func TestBehind(t *testing.T) {
	routes, err := Compile([]RouteConfig{
		{Name: "all", Topic: "devices/{device_id}/{rest...} other"},
		{Name: "telemetry", Topic: "devices/+/telemetry"},
		{Name: "alarms", Topic: "alarms/#"},
	})
	if err != nil {
		t.Fatal(err)
	}
	for filter, want := range map[string][]string{
		"devices/+/#": {"all", "telemetry"}, "other": {"all"}, "alarms/#": {"alarms"}, "nobody/#": nil,
	} {
		if got := routes.Behind(filter); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", filter, got, want)
		}
	}
	for _, filter := range routes.Filters() {
		if len(routes.Behind(filter)) == 0 {
			t.Errorf("nobody is behind %s", filter)
		}
	}
}
