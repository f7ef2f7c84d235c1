package main

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// peak is the most memory that the process has had resident, in MiB.
func (p *program) peak(t *testing.T) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(status)
	if found == nil {
		t.Fatalf("no VmHWM in %s", status)
	}
	kib, err := strconv.Atoi(string(found[1]))
	if err != nil {
		t.Fatal(err)
	}
	return kib >> 10
}

// TestTooLarge: messages far above the limit cost little memory, become dead letters with their first
// bytes, are acknowledged, and cannot be replayed.
func TestTooLarge(t *testing.T) {
	m, url := startMosquitto(t, "max_packet_size 268435455"), database(t) // Mosquitto 2.1.2 refuses such packets unless told otherwise
	environment(t, append(readings, "BRIDGE_MQTT_URLS=mqtt://"+m.addr, "BRIDGE_DATABASE_URL="+url)...)
	p := launch(t)
	const count, size = 3, 100 << 20
	m.publish("nowhere", "warm") // no route, no subscription
	payload := strings.Repeat("21.5", size/4)
	for range count {
		m.publish("readings/large", payload)
	}
	m.publish("readings/small", "21.5")
	eventually(t, "everything is committed", func() (bool, string) {
		got := query(t, url, `select (select count(*) from bridge.dead_letters), (select count(*) from readings)`)
		return got == fmt.Sprintf("%d 1", count), got
	})
	t.Logf("peak of the process: %d MiB", p.peak(t))
	if peak := p.peak(t); peak > 150 && !raceEnabled {
		t.Errorf("peak of the process: %d MiB", peak)
	}
	eventually(t, "everything is acknowledged", func() (bool, string) {
		got := fmt.Sprint(strings.Count(m.said.String(), "Received PUBACK from bridge-0"))
		return got == fmt.Sprint(count+1), got
	})
	const look = `select distinct reason, length(payload), detail from bridge.dead_letters`
	letter := query(t, url, look)
	want := fmt.Sprintf("too_large %d the message has %d bytes, BRIDGE_MQTT_MAX_MESSAGE_BYTES is %d: the first %d bytes of its payload are kept, so it cannot be replayed",
		64<<10, size+2+len("readings/large")+2+1, 16<<20, 64<<10)
	if letter != want {
		t.Errorf("letter %s\nwant   %s", letter, want)
	}
	code, stdout, stderr := bridge(t, "", "deadletters", "replay")
	t.Logf("replay: %d\n%s%s", code, stdout, stderr)
	if code != exitFailure || !strings.Contains(stdout+stderr, "too_large") || !strings.Contains(stdout+stderr, "not whole") {
		t.Errorf("a replay says %d\n%s%s", code, stdout, stderr)
	}
	if again := query(t, url, look); again != want {
		t.Errorf("after a replay the letter says %s", again)
	}
	if rows := query(t, url, `select count(*) from readings`); rows != "1" {
		t.Errorf("%s rows", rows)
	}
}
