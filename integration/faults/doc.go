// Package faults plays the fault matrix: the real bridge between a real broker and a real database,
// under load, while something breaks. Every scenario publishes all kinds of messages at once, keeps
// account of what the broker acknowledged to the publisher, and at the end compares the tables with
// that account, message by message.
//
// `make faults` plays them all and writes the table of docs/faults.md; `go test` plays the short
// list.
//
//	FAULTS_MINUTES=n   the long form: all scenarios, again and again until the time is over
//	FAULTS_SEED=n      the random choices of an earlier run, printed with its table
//	-run TestFaults/x  one scenario (of the long form, with FAULTS_MINUTES)
package faults
