package store

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/mqttpg/bridge/mapping"
)

// looked asks Verify on a connection of the pool.
func looked(t *testing.T, pool *pgxpool.Pool, ownSchema string, config mapping.RouteConfig) TableReport {
	t.Helper()
	conn, err := pool.Acquire(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	r, err := Verify(context.Background(), conn.Conn(), ownSchema, compile(t, config).All()[0])
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestVerifyAgreesWithEnsure: what Verify foretells is what Ensure then does, for a role that owns
// nothing and for one that may do everything.
func TestVerifyAgreesWithEnsure(t *testing.T) {
	t.Parallel()
	const key = `, primary key (device_id, "time", message_id))`
	const whole = `create table telemetry (device_id text, "time" timestamptz, message_id uuid, received_at timestamptz, topic text, temperature float8, status text, payload jsonb, payload_bytes bytea`
	tests := []struct {
		name, sql  string
		table      string // of the route; empty: its name
		restricted string // what a restricted role is granted; empty: the test is done as the owner of everything
		create     bool
		add        string
		warning    string
		refused    string
	}{
		{name: "nothing there", create: true},
		{name: "schema and table missing", table: "iot.telemetry", create: true},
		{name: "complete", sql: whole + key},
		{name: "columns missing", sql: `create table telemetry (device_id text, "time" timestamptz, message_id uuid, temperature float8` + key, add: "received_at topic status payload payload_bytes"},
		{name: "key column missing", sql: `create table telemetry (device_id text, "time" timestamptz, temperature float8)`, refused: "has no column message_id, which belongs to the key"},
		{name: "another type", sql: strings.Replace(whole, "temperature float8", "temperature text", 1) + key, refused: "column temperature is text, the route writes float8: write temperature:text in COLUMNS, or alter table \"public\".\"telemetry\" alter column \"temperature\" type float8"},
		{name: "another type of the bridge's own", sql: strings.Replace(whole, "topic text", "topic int8", 1) + key, refused: "column topic is bigint, the route writes text: alter table \"public\".\"telemetry\" alter column \"topic\" type text"},
		{name: "generated column", sql: strings.Replace(whole, "status text", "status text generated always as ('x') stored", 1) + key, refused: "column status is generated"},
		{name: "no unique index", sql: whole + ")", warning: "no unique index on exactly (device_id, time, message_id): what a publisher sends again"},
		{name: "column that nobody fills", sql: whole + ", site text not null" + key, warning: "column site must not be null"},

		{name: "may not create in the schema", restricted: "select", refused: "may not create it in schema public: grant usage, create on schema \"public\" to \"bridge_role_"},
		{name: "may not create the schema", restricted: "select", table: "iot.telemetry", refused: "grant create on database \"bridge_store_"},
		{name: "may not use the schema", restricted: "select", sql: "create schema iot", table: "iot.telemetry", refused: "permission denied for schema iot"},
		{name: "may insert and select", restricted: "select, insert", sql: whole + key},
		{name: "may not insert", restricted: "select", sql: whole + key, refused: `no privilege to insert: grant select, insert on "public"."telemetry" to "bridge_role_`},
		{name: "may not select the key", restricted: "insert", sql: whole + key, refused: `no privilege to select column device_id, by which duplicates are recognised: grant select, insert on "public"."telemetry" to "bridge_role_`},
		{name: "may insert alone, and there is no key", restricted: "insert", sql: whole + ")", warning: "no unique index"},
		{name: "may not add a column", restricted: "select, insert", sql: strings.Replace(whole, ", status text", "", 1) + key, add: "status", refused: "lacks status text, and only its owner can add columns"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			url, pool := newDatabase(t)
			if test.sql != "" {
				execute(t, pool, test.sql)
			}
			if test.restricted != "" {
				owner := pool
				execute(t, owner, "revoke create on schema public from public")
				var role string
				role, pool = newRole(t, url, owner)
				execute(t, owner, "grant usage on schema bridge to "+role+"; grant "+test.restricted+" on all tables in schema public to "+role)
			}
			config := telemetry
			config.Table = test.table
			r := looked(t, pool, "bridge", config)
			var added []string
			for _, c := range r.Add {
				added = append(added, c.Name)
			}
			refused, warnings := "", strings.Join(r.Warnings, "\n")
			if r.Refused != nil {
				refused = r.Refused.Error()
			}
			if (refused == "") != (test.refused == "") || !strings.Contains(refused, test.refused) {
				t.Errorf("refused because %q, want %q", refused, test.refused)
			}
			if test.refused == "" && (warnings == "") != (test.warning == "") || !strings.Contains(warnings, test.warning) {
				t.Errorf("warnings %q, want %q", warnings, test.warning)
			}
			if got := strings.Join(added, " "); got != test.add || test.refused == "" && r.Create != test.create {
				t.Errorf("create %t, add %q; want %t, %q", r.Create, got, test.create, test.add)
			}
			tables := NewTables(pool, impatient(t), compile(t, config))
			ensure(t, tables)
			if failing := tables.Failing()["telemetry"]; !strings.HasSuffix(failing, refused) || (failing == "") != (refused == "") {
				t.Errorf("Ensure says %q, Verify %q", failing, refused)
			}
			if got := tables.Warnings()["telemetry"]; refused == "" && !slices.Equal(got, r.Warnings) {
				t.Errorf("Ensure warns %q, Verify %q", got, r.Warnings)
			}
		})
	}
}

// TestVerifyTellsThatRetentionCannotDelete before rows are too old.
func TestVerifyTellsThatRetentionCannotDelete(t *testing.T) {
	t.Parallel()
	url, owner := newDatabase(t)
	config := telemetry
	config.Partition = "none"
	execute(t, owner, strings.Join(DDL(&compile(t, config).All()[0].Table), ";")+"; revoke create on schema public from public")
	role, pool := newRole(t, url, owner)
	execute(t, owner, "grant usage on schema bridge to "+role+"; grant select, insert on all tables in schema public to "+role)
	const warning = "the role may not delete rows, so RETENTION removes none: grant delete on \"public\".\"telemetry\" to \"bridge_role_"
	told := func(retention string) bool {
		config.Partition, config.Retention = "day", retention
		return strings.Contains(strings.Join(looked(t, pool, "bridge", config).Warnings, "\n"), warning)
	}
	if told("") || !told("30d") {
		t.Error("without retention it is told, or with it is not")
	}
	execute(t, owner, "grant delete on all tables in schema public to "+role)
	if told("30d") {
		t.Error("it is told though the role may delete")
	}
}

// TestTableWithoutPartitions: what that means for retention is told where there is one.
func TestTableWithoutPartitions(t *testing.T) {
	t.Parallel()
	for retention, want := range map[string]string{
		"":    "table t is not partitioned by range of time: no partitions are made",
		"90d": "table t is not partitioned by range of time: no partitions are made, retention deletes row by row",
	} {
		route := compile(t, mapping.RouteConfig{Name: "t", Topic: "t", Retention: retention}).All()[0]
		table := &catalogTable{deletable: true, uniqueKeys: [][]string{slices.Sorted(slices.Values(route.Table.KeyColumns))}}
		if got := table.warnings(route); len(got) != 1 || got[0] != want {
			t.Errorf("retention %q: %q, want %q", retention, got, want)
		}
	}
}

// TestVerifyTellsThePlace: search_path leads to the role's own schema where there is one, and a
// schema that the migrations make under the role's name is one soon.
func TestVerifyTellsThePlace(t *testing.T) {
	t.Parallel()
	url, owner := newDatabase(t)
	role, pool := newRole(t, url, owner)
	execute(t, owner, "grant create on schema public to "+role+"; grant create on database "+value[string](t, owner, "select current_database()::text")+" to "+role)
	place := func(ownSchema, config, want, warning string) {
		t.Helper()
		route := telemetry
		route.Table = config
		r := looked(t, pool, ownSchema, route)
		warnings := strings.Join(r.Warnings, "\n")
		if r.Table != want || r.Refused != nil || (warnings == "") != (warning == "") || !strings.Contains(warnings, warning) {
			t.Errorf("own schema %s: table %s, refused %v, warnings %q; want table %s, warning %q", ownSchema, r.Table, r.Refused, warnings, want, warning)
		}
	}
	beside := "table telemetry is in schema " + role + ", beside the bridge's own tables, because the role has the same name"
	place("bridge", "", "public.telemetry", "")
	place(role, "", role+".telemetry", beside)
	place(role, "public.telemetry", "public.telemetry", "")
	execute(t, owner, "create schema "+role+" authorization "+role)
	place(role, "", role+".telemetry", beside)
	place("bridge", "", role+".telemetry", "")

	cfg := impatient(t)
	cfg.Schema = role
	tables := NewTables(pool, cfg, compile(t, telemetry))
	ensure(t, tables)
	if where := value[string](t, owner, `select relnamespace::regnamespace::text from pg_class where relname = 'telemetry'`); where != role {
		t.Errorf("the table was made in %s", where)
	}
	if w := tables.Warnings()["telemetry"]; len(w) != 1 || !strings.Contains(w[0], beside) {
		t.Errorf("warnings %q", w)
	}
	place(role, "", role+".telemetry", beside)

	conn, err := pool.Acquire(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	if _, err := conn.Exec(context.Background(), "set search_path = nowhere"); err != nil {
		t.Fatal(err)
	}
	r, err := Verify(context.Background(), conn.Conn(), "bridge", compile(t, telemetry).All()[0])
	if err != nil || r.Refused == nil || !strings.Contains(r.Refused.Error(), "search_path (nowhere) names no schema") {
		t.Errorf("search_path that leads nowhere: %+v, %v", r, err)
	}
	if _, err := conn.Exec(context.Background(), "reset search_path"); err != nil {
		t.Fatal(err)
	}
}

func TestFirstSchema(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ path, role, coming, current, want string }{
		{`"$user", public`, "bridge", "bridge", "public", "bridge"},
		{`"$user", public`, "writer", "bridge", "public", "public"},
		{`public, "$user"`, "bridge", "bridge", "public", "public"},
		{`$user`, "bridge", "bridge", "", "bridge"},
		{`"odd, name", "bridge"`, "x", "bridge", "", "bridge"},
		{`elsewhere`, "bridge", "bridge", "", ""},
	} {
		if got := firstSchema(c.path, c.role, c.coming, c.current); got != c.want {
			t.Errorf("%s as %s, with %s to come: %q, want %q", c.path, c.role, c.coming, got, c.want)
		}
	}
}
