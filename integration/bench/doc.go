// Package bench measures the bridge, and others beside it, at the same work: a real Mosquitto and a real
// PostgreSQL as processes on loopback, a cheap load generator, and what the kernel and the database say
// about CPU, memory, write-ahead log and times of commit.
//
// `make bench` measures everything and writes docs/performance.md with its plots; `go test` plays the
// quick form, which looks at rows and page and at no figure.
//
//	BENCH_DOCS=dir     the full form; the page goes to this folder
//	BENCH_ONLY=a,b     only these sections
//	BENCH_ROUNDS=n     rounds of every section, default 3
//	BENCH_OUTAGE=5m    how long the database is away in the section outage
package bench
