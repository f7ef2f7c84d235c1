//go:build unix

// Command demo shows the bridge at work on a machine where nothing is set up.
//
// It brings an MQTT 5 broker of its own, finds or makes a private PostgreSQL, builds and starts the
// real bridge with real routes, lets a dozen simulated devices publish, and prints every few
// seconds what became of their messages. At the end it counts: every published message must be
// accounted for and every row must be in its table, or the exit code is 1. Nothing stays behind.
//
// It is a program of its own, so that the bridge links neither a broker nor a database server.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

func main() {
	os.Exit(run())
}

// run returns the exit code.
func run() int {
	options, err := parseOptions(os.Args[1:], os.Getenv)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		return 2
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	undo := &cleanup{}
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-signals
		fmt.Println("\nStopping. Once more to stop at once.")
		cancel()
		<-signals
		atOnce(undo)
		os.Exit(130) // what a shell reports for a program ended by Ctrl-C
	}()
	err = realMain(ctx, os.Stdout, options, undo)
	undo.run()
	return exitCode(err, os.Stderr)
}

// exitCode tells how the demonstration ended. A Ctrl-C is a wish, not a failure.
func exitCode(err error, complain io.Writer) int {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errInterrupted):
		fmt.Fprintln(complain, "demo:", err)
		return 0
	}
	fmt.Fprintln(complain, "demo:", err)
	return 1
}

// errInterrupted is a Ctrl-C before there was anything to count.
var errInterrupted = errors.New("interrupted before the bridge was ready")

// atOnce cleans up, but waits for nothing that hangs: children end with this process anyway.
func atOnce(undo *cleanup) {
	done := make(chan struct{})
	go func() {
		undo.run()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(3 * time.Second):
	}
}

type options struct {
	duration time.Duration // 0 = until interrupted
	every    time.Duration // between two reports
	bridge   string        // a bridge binary; "" = build it
	verbose  bool
}

// parseOptions reads the flags; DEMO_SECONDS stands in for -seconds, so that
// `make demo DEMO_SECONDS=20` works.
func parseOptions(args []string, getenv func(string) string) (options, error) {
	flags := flag.NewFlagSet("demo", flag.ContinueOnError)
	var o options
	seconds := 0
	if text := getenv("DEMO_SECONDS"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			return o, fmt.Errorf("DEMO_SECONDS=%s: a whole number of seconds is expected", text)
		}
		seconds = n
	}
	flags.IntVar(&seconds, "seconds", seconds, "end after so many seconds; 0 runs until Ctrl-C (DEMO_SECONDS)")
	flags.DurationVar(&o.every, "every", 5*time.Second, "time between two reports")
	flags.StringVar(&o.bridge, "bridge", "", "use this bridge binary instead of building one")
	flags.BoolVar(&o.verbose, "v", false, "show the bridge's log")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if seconds < 0 || o.every <= 0 {
		return o, errors.New("times must not be negative")
	}
	o.duration = time.Duration(seconds) * time.Second
	return o, nil
}

// realMain runs the demonstration until ctx is done or its time is over. What must not outlive the
// process is given to undo as soon as it exists.
func realMain(ctx context.Context, out io.Writer, o options, undo *cleanup) error {
	broker, err := startBroker()
	if err != nil {
		return err
	}
	undo.add(broker.close)
	sayf(out, "broker", "MQTT 5, in this process, at %s", broker.url)

	db, err := findDatabase(ctx, out, undo)
	if err != nil {
		return interrupted(ctx, err)
	}
	sayf(out, "database", "%s", db.description)

	bridge, err := startBridge(ctx, out, o, undo, broker.url, db)
	if err != nil {
		return interrupted(ctx, err)
	}
	sayf(out, "bridge", "ready: %s (status page), %s/health, %s/metrics", bridge.url+"/", bridge.url, bridge.url)
	introduce(out, bridge, db)

	// The devices stop first; everything they published must then pass through the bridge.
	fleetCtx, stopFleet := context.WithCancel(ctx)
	defer stopFleet()
	fleet, err := startFleet(fleetCtx, broker.address)
	if err != nil {
		return interrupted(ctx, err)
	}
	observer, err := newObserver(ctx, bridge.url, db)
	if err != nil {
		return interrupted(ctx, err)
	}
	defer observer.close()

	err = watch(ctx, out, o, bridge, fleet, observer)
	stopFleet()
	if fleetErr := fleet.wait(); err == nil {
		err = fleetErr
	}
	if err != nil {
		return err
	}
	// The interrupted demonstration is counted, too.
	return finish(context.WithoutCancel(ctx), out, bridge, fleet, observer)
}

// watch prints reports until the time is over or ctx is done. It is an error when the bridge ends.
func watch(ctx context.Context, out io.Writer, o options, bridge *bridge, fleet *fleet, observer *observer) error {
	var over <-chan time.Time
	every := o.every
	if o.duration > 0 {
		timer := time.NewTimer(o.duration)
		defer timer.Stop()
		over = timer.C
		every = min(every, max(o.duration/2, time.Second))
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	started := time.Now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-over:
			return nil
		case <-bridge.done:
			return bridge.obituary()
		case err := <-fleet.failed:
			return err
		case <-tick.C:
		}
		view, err := observer.look(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case !bridge.running():
			return bridge.obituary()
		case err != nil:
			fmt.Fprintln(out, "no report this time:", err)
		default:
			writeReport(out, time.Since(started), fleet.tallies(), view)
		}
	}
}

// finish waits until the bridge has dealt with everything, stops it, and compares what was
// published with what the bridge counted and with what the database holds.
func finish(ctx context.Context, out io.Writer, bridge *bridge, fleet *fleet, observer *observer) error {
	published := fleet.tallies()
	counts, err := observer.settle(ctx, bridge, published)
	if err != nil {
		return err
	}
	if err := bridge.stop(); err != nil {
		return err
	}
	stored, err := observer.stored(ctx)
	if err != nil {
		return err
	}
	mistakes := compare(published, counts, stored)
	writeSummary(out, published, counts, stored, mistakes)
	if len(mistakes) > 0 {
		return errors.New("not every message is accounted for")
	}
	return nil
}

// interrupted replaces the follow-up errors of a Ctrl-C during the start by what happened.
func interrupted(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return errInterrupted
	}
	return err
}

func sayf(out io.Writer, what, format string, args ...any) {
	fmt.Fprintf(out, "%-9s "+format+"\n", append([]any{what}, args...)...)
}
