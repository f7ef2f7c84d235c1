//go:build unix

// Package provider gives tests a real MQTT broker, a real PostgreSQL server and the real bridge
// binary, each of which can be stopped, killed, paused and started again at the same address.
//
// Brokers and databases come as containers when a Docker engine answers, otherwise as processes of
// the programs installed on this machine; tests cannot tell the difference. When neither is to be
// had, the error says what to install: no test is skipped for want of a server.
//
// Everything started here ends with the test that asked for it, and with the test binary at the
// latest, even when that is killed: children are told by the kernel, containers and folders are
// removed by a janitor process that outlives the test binary by a moment.
//
// The environment may say more:
//
//	BRIDGE_TEST_PROVIDER         containers or processes, instead of the choice above
//	BRIDGE_TEST_POSTGRES_IMAGE   default postgres:15
//	BRIDGE_TEST_MOSQUITTO_IMAGE  default eclipse-mosquitto:2
//	BRIDGE_TEST_COVERDIR         an existing folder: the bridge is built with -cover and writes its
//	                             counters there when it ends by itself
//	CI=true                      without a Docker engine there is no provider, as a build machine
//	                             that lost its engine must not pass for one that has it
package provider
