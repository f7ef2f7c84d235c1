//go:build unix

package main

import (
	"fmt"
	"strings"
)

// setting is one environment variable of the bridge.
type setting struct{ name, value string }

// routeNames are the routes in the order of the reports.
var routeNames = []string{"telemetry", "readings", "status", "events"}

// routeSettings shows one route of each kind that people need.
var routeSettings = []setting{
	{"BRIDGE_ROUTES", strings.Join(routeNames, ",")},

	// JSON with a time stamp: exactly once, whatever happens.
	{"BRIDGE_ROUTE_TELEMETRY_TOPIC", "devices/{device_id}/telemetry"},
	{"BRIDGE_ROUTE_TELEMETRY_TIME", "$.ts"},
	{"BRIDGE_ROUTE_TELEMETRY_COLUMNS", "temperature:float8 = $.temperature, humidity:float8 = $.humidity, state:text = $.state"},

	// A bare number and no time: two equal readings are two readings.
	{"BRIDGE_ROUTE_READINGS_TOPIC", "readings/{device_id}/{quantity}"},
	{"BRIDGE_ROUTE_READINGS_FORMAT", "text"},
	{"BRIDGE_ROUTE_READINGS_KEY", "delivery"},
	{"BRIDGE_ROUTE_READINGS_COLUMNS", "quantity:text = {quantity}, value:float8 = payload"},
	{"BRIDGE_ROUTE_READINGS_PAYLOAD", "drop"},

	// State that the devices publish with RETAIN. What is published while the bridge is subscribed is stored
	// like any other message; older retained messages come to plain subscriptions alone, and there only
	// with RETAINED=store. Clearing the state publishes an empty payload, which is skipped.
	{"BRIDGE_ROUTE_STATUS_TOPIC", "devices/{device_id}/status"},
	{"BRIDGE_ROUTE_STATUS_COLUMNS", "online:bool = $.online, firmware:text = $.firmware"},
	{"BRIDGE_ROUTE_STATUS_ON_EMPTY", "skip"},

	// Several events in one message: one row for each.
	{"BRIDGE_ROUTE_EVENTS_TOPIC", "devices/{device_id}/events"},
	{"BRIDGE_ROUTE_EVENTS_EACH", "$.events"},
	{"BRIDGE_ROUTE_EVENTS_TIME", "@.at"},
	{"BRIDGE_ROUTE_EVENTS_COLUMNS", "kind:text = @.kind, level:int4 = @.level"},
}

// exportLine is a line for a shell.
func (s setting) exportLine() string {
	return fmt.Sprintf("export %s='%s'", s.name, strings.ReplaceAll(s.value, "'", `'\''`))
}
