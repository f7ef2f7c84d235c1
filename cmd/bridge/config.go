package main

import (
	"fmt"
	"math"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/kelseyhightower/envconfig"
	"github.com/mqttpg/bridge/mapping"
	"github.com/mqttpg/bridge/store"
)

// prefix begins the name of every variable.
const prefix = "BRIDGE"

// config is the configuration as the environment gives it. envconfig reads it, `bridge help env`
// prints it. Tags: default and split_words are envconfig's; desc is the meaning; oneof are all the
// values there are; secret values never appear in a message or a log; verbatim ones may stand in quotes.
//
// Names come from the fields, never from an envconfig tag: such a tag would read the variable
// without the prefix too.
type config struct {
	MQTT             mqttConfig
	Broker           brokerConfig
	Database         databaseConfig
	Schema           text `default:"bridge" desc:"schema of the bridge's own tables"`
	Migrate          text `default:"on" oneof:"on off" desc:"whether run applies pending migrations first"`
	Batch            batchConfig
	MaxInflightBytes size `split_words:"true" default:"256MiB" desc:"byte budget for everything received and not yet committed"`
	HTTP             httpConfig
	Log              logConfig
	ParkAfter        duration `split_words:"true" default:"5s" desc:"how long all routes wait for one whose table cannot be written, before its messages become dead letters, which are replayed when it can; 0s = not at all"`
	ShutdownTimeout  duration `split_words:"true" default:"25s" desc:"time to drain after SIGTERM, at least 1s; below the orchestrator's grace period"`
	Routes           names    `desc:"comma list of route names; empty = one route messages on # into table messages"`

	// What the settings amount to, filled in by loadConfig.
	username     string
	password     func() (string, error) // nil: none
	pool         *pgxpool.Config
	routeConfigs []mapping.RouteConfig
	routes       *mapping.Routes
	warnings     []string // settings that are allowed and seldom meant
}

type mqttConfig struct {
	URLs            addresses `default:"mqtt://localhost:1883" secret:"true" desc:"comma list, tried in turn; schemes mqtt, mqtts, ws, wss (tcp, ssl, tls accepted)"`
	Username        text      `desc:"user name for the broker; a URL may hold user and password instead, mqtt://user:password@broker:1883"`
	UsernameFile    text      `split_words:"true" desc:"file that holds the user name"`
	Password        text      `secret:"true" verbatim:"true" desc:"password for the broker"`
	PasswordFile    text      `split_words:"true" desc:"file that holds the password; read again at every connection attempt"`
	CAFile          text      `split_words:"true" desc:"PEM file of the authorities that may sign the broker's certificate; default the system's"`
	CertFile        text      `split_words:"true" desc:"PEM file of the client certificate, for mutual TLS"`
	KeyFile         text      `split_words:"true" desc:"PEM file of the client certificate's key"`
	ServerName      text      `split_words:"true" desc:"host name the broker's certificate is checked against; default the URL's"`
	ShareName       text      `split_words:"true" default:"bridge" desc:"Share Name; client ids are <share name>-<index>"`
	ClientIDPrefix  text      `split_words:"true" desc:"makes the client ids <prefix>-<index> instead"`
	Mode            text      `default:"shared" oneof:"shared exclusive" desc:"shared subscriptions, or plain ones on one leased session (active and standby)"`
	Sessions        integer   `default:"1" desc:"number of leased sessions that share the subscription"`
	QoS             integer   `default:"1" desc:"QoS of the subscriptions: 0, 1 or 2"`
	Keepalive       duration  `default:"15s" desc:"Keep Alive, whole seconds up to 65535s; 0 = off"`
	SessionExpiry   duration  `split_words:"true" default:"24h" desc:"how long the broker keeps a session without a connection; longer than any outage"`
	ReceiveMaximum  integer   `split_words:"true" default:"2000" desc:"in-flight window per session, 1 to 32767"`
	MaxMessageBytes size      `split_words:"true" default:"16MiB" desc:"greatest message that is held whole; of a larger one the beginning becomes a dead letter with reason too_large"`
	CommonSessions  text      `split_words:"true" default:"off" oneof:"off on" desc:"on: all of BRIDGE_MQTT_URLS are one broker, or a cluster whose nodes share their sessions"`
	StatusTopic     text      `split_words:"true" desc:"when set: retained online below <topic>/<client id> after connect, offline as Will and before a clean disconnect"`
	Trial           text      `default:"on" oneof:"on off" desc:"on: a replica that alone has lost the broker leaves its sessions to the others; before, both sides try the broker under a random client id. off, where the broker admits known client ids alone: it keeps them"`
	Watch           text      `default:"on" oneof:"on off" desc:"one more connection that reads the broker's version and its count of dropped messages below $SYS"`
}

type brokerConfig struct {
	QueueLimit limit `split_words:"true" unset:"unknown" desc:"most messages the broker queues for a client, 0 = no limit (Mosquitto's max_queued_messages, EMQX's max_mqueue_len); no broker tells, and it says how long an outage may last"`
}

type databaseConfig struct {
	URL     text `secret:"true" unset:"from the PG* variables" desc:"pgx connection string"`
	URLFile text `split_words:"true" desc:"file that holds the connection string; read again for every new connection"`
}

type batchConfig struct {
	MaxMessages integer  `split_words:"true" default:"7500" desc:"most messages in one transaction"`
	MaxBytes    size     `split_words:"true" default:"8MiB" desc:"most bytes in one transaction; a larger message goes alone"`
	Linger      duration `default:"40ms" desc:"how long messages may wait for others to be committed with, at most: more makes fewer and larger transactions; up to 2 500 messages a second it is 5ms, and a lone message does not wait"`
}

type httpConfig struct {
	Addr text `default:":8080" desc:"listen address of health, metrics and status page"`
}

type logConfig struct {
	Level  text `default:"info" oneof:"debug info warn error" desc:"least level that is logged"`
	Format text `default:"json" oneof:"json console" desc:"console is for people"`
}

// routeConfig is one route, BRIDGE_ROUTE_<NAME>_<SUFFIX>, convertible to mapping.RouteConfig: package
// mapping reads the values and knows the defaults, which the unset tags tell in words.
type routeConfig struct {
	Name         string `ignored:"true"`
	Topic        string `type:"topic filter" unset:"required" desc:"MQTT filter: +, #, captures devices/{device_id}/telemetry, last level {rest...}; several separated by spaces"`
	Format       string `type:"json | text | raw" unset:"json" desc:"what the payload is; csv, cbor, msgpack, protobuf and sparkplug are not in this version"`
	Table        string `type:"table" unset:"route name" desc:"table to write to; may be schema-qualified"`
	Each         string `type:"JSONPath" desc:"path to an array: one row per element, @ is the element"`
	Device       string `type:"expression" unset:"{device_id} if captured, else the second topic level, else the topic" desc:"what device_id is"`
	Time         string `type:"expression" unset:"receipt time" desc:"what the event time is"`
	TimeFormat   string `split_words:"true" type:"auto | rfc3339 | unix | unix_ms | unix_us | unix_ns | Go layout" unset:"auto" desc:"how the event time is written"`
	TimeZone     string `split_words:"true" type:"time zone" unset:"none: such stamps are refused; UTC with a Go layout" desc:"zone of stamps that name none, in TIME and in columns of type timestamptz"`
	Columns      string `type:"columns" desc:"comma or newline list of name[:type] = expression, with PostgreSQL's types"`
	Key          string `type:"auto | delivery | expressions" unset:"auto" desc:"what identifies a message, whoever sends it again: event time and content if there is TIME, its delivery alone, or these values"`
	Payload      string `type:"keep | drop | rest" unset:"keep" desc:"what column payload holds: everything, nothing, or the fields that no column took"`
	OnEmpty      string `split_words:"true" type:"skip | store" unset:"skip" desc:"empty payloads, as of cleared retained messages"`
	Retained     string `type:"skip | store" unset:"skip" desc:"retained messages sent because of the subscription; only BRIDGE_MQTT_MODE=exclusive receives any"`
	Latest       string `type:"table" desc:"not in this version: table that keeps the newest row per device"`
	Partition    string `type:"day | week | month | none" unset:"day" desc:"width of the table's partitions"`
	Retention    string `type:"duration" unset:"for ever" desc:"age at which partitions are dropped; 90d is accepted"`
	ProtoFile    string `split_words:"true" type:"file" desc:"not in this version: descriptor set, for FORMAT=protobuf"`
	ProtoMessage string `split_words:"true" type:"name" desc:"not in this version: message name, for FORMAT=protobuf"`
}

// loadConfig reads the environment. Its error is a *problems with every mistake there is.
func loadConfig() (*config, error) {
	cfg := &config{}
	var found problems
	found.unquote(variablesOf(prefix, cfg))
	if err := envconfig.Process(prefix, cfg); err != nil { // settings never fail to decode
		return nil, fmt.Errorf("read the environment: %w", err)
	}
	known := map[string]string{} // variable -> the route that reads it
	wrong := map[string]bool{}   // variables whose value has no meaning, so that no rule judges it again
	for _, v := range variablesOf(prefix, cfg) {
		known[v.name] = ""
		for reason := range strings.Lines(v.mistake()) {
			wrong[v.name] = true
			found.add(v.name, v.shown(), reason)
		}
	}
	cfg.validate(func(variable, value, reason string) {
		if !wrong[variable] {
			found.add(variable, value, reason)
		}
	})
	cfg.loadRoutes(&found, known)
	found.addUnknown(os.Environ(), known, slices.Concat(cfg.Routes.value, meantNames(cfg.Routes.text)))
	if len(found) > 0 {
		return nil, &found
	}
	return cfg, nil
}

// validate applies the rules that go beyond one value's form, and reads what files hold.
func (cfg *config) validate(report func(variable, value, reason string)) {
	rule := func(holds bool, variable, value, reason string) bool {
		if !holds {
			report(variable, value, reason)
		}
		return holds
	}
	number := func(s integer, least, most int, variable string) {
		rule(s.value >= least && s.value <= most, variable, s.text, fmt.Sprintf("expected a number from %d to %d", least, most))
	}
	seconds := func(s duration, most int64, variable string) {
		rule(s.value%time.Second == 0 && s.value/time.Second <= time.Duration(most), variable, s.text,
			fmt.Sprintf("expected whole seconds, at most %ds", most))
	}

	m := &cfg.MQTT
	cfg.validateBrokerLogin(report)
	cfg.validateTLS(report)
	rule(m.ShareName.value != "" && !strings.ContainsAny(m.ShareName.value, "/+#"), "BRIDGE_MQTT_SHARE_NAME", m.ShareName.text,
		"expected a name without /, + and #") // [MQTT-4.8.2-1] [MQTT-4.8.2-2]
	for variable, s := range map[string]text{"BRIDGE_MQTT_SHARE_NAME": m.ShareName, "BRIDGE_MQTT_CLIENT_ID_PREFIX": m.ClientIDPrefix} {
		rule(len(s.value) <= 1000 && printable(s.value), variable, s.text, "expected at most 1000 bytes of printable text")
	}
	number(m.Sessions, 1, maxSessions, "BRIDGE_MQTT_SESSIONS")
	rule(m.Mode.value != "exclusive" || m.Sessions.value == 1 || m.Sessions.mistake != "", "BRIDGE_MQTT_SESSIONS", m.Sessions.text,
		"expected 1 in exclusive mode: plain subscriptions on several sessions would deliver everything several times")
	number(m.QoS, 0, 2, "BRIDGE_MQTT_QOS")
	seconds(m.Keepalive, math.MaxUint16, "BRIDGE_MQTT_KEEPALIVE")
	seconds(m.SessionExpiry, math.MaxUint32, "BRIDGE_MQTT_SESSION_EXPIRY")
	number(m.ReceiveMaximum, 1, store.LedgerWindow, "BRIDGE_MQTT_RECEIVE_MAXIMUM")
	rule(!strings.ContainsAny(m.StatusTopic.value, "+#") && !strings.HasPrefix(m.StatusTopic.value, "$") && printable(m.StatusTopic.value),
		"BRIDGE_MQTT_STATUS_TOPIC", m.StatusTopic.text, "expected a topic name without + and # that does not begin with $")

	rule(m.MaxMessageBytes.value >= 1<<10, "BRIDGE_MQTT_MAX_MESSAGE_BYTES", m.MaxMessageBytes.text, "expected at least 1KiB")

	cfg.validateDatabase(report)
	rule(schemaName.MatchString(cfg.Schema.value) && !strings.HasPrefix(cfg.Schema.value, "pg_"), "BRIDGE_SCHEMA", cfg.Schema.text,
		"expected lower-case letters, digits and _, at most 63, not beginning with a digit or pg_")

	number(cfg.Batch.MaxMessages, 1, math.MaxUint16, "BRIDGE_BATCH_MAX_MESSAGES")
	rule(cfg.Batch.MaxBytes.value >= 1, "BRIDGE_BATCH_MAX_BYTES", cfg.Batch.MaxBytes.text, "expected at least 1 byte")
	rule(cfg.Batch.Linger.value <= time.Minute, "BRIDGE_BATCH_LINGER", cfg.Batch.Linger.text, "expected at most 1m")
	rule(cfg.MaxInflightBytes.value >= 1<<20, "BRIDGE_MAX_INFLIGHT_BYTES", cfg.MaxInflightBytes.text, "expected at least 1MiB")
	rule(validAddress(cfg.HTTP.Addr.value), "BRIDGE_HTTP_ADDR", cfg.HTTP.Addr.text, "expected host:port or :port, such as :8080")
	rule(cfg.ParkAfter.value <= time.Hour, "BRIDGE_PARK_AFTER", cfg.ParkAfter.text, "expected at most 1h")
	rule(cfg.ShutdownTimeout.value >= time.Second, "BRIDGE_SHUTDOWN_TIMEOUT", cfg.ShutdownTimeout.text, "expected at least 1s: the last batches are committed and acknowledged in it")

	warn := func(holds bool, text string) {
		if holds {
			cfg.warnings = append(cfg.warnings, text)
		}
	}
	warn(m.QoS.value == 0, "BRIDGE_MQTT_QOS is 0: what arrives while the bridge or the database is away is lost")
	warn(m.SessionExpiry.value == 0 && m.QoS.value > 0,
		"BRIDGE_MQTT_SESSION_EXPIRY is 0: the broker forgets the session with every connection, and with it all that is queued or not acknowledged; QoS 1 and 2 then promise nothing")
	warn(m.SessionExpiry.value > 0 && m.SessionExpiry.value < max(m.Keepalive.value, time.Minute),
		"BRIDGE_MQTT_SESSION_EXPIRY is shorter than the keep alive or a minute: a restart or a short outage loses messages")
	warn(cfg.MaxInflightBytes.value < cfg.Batch.MaxBytes.value, "BRIDGE_MAX_INFLIGHT_BYTES is below BRIDGE_BATCH_MAX_BYTES: no batch gets full")
	warn(m.Keepalive.value == 0, "BRIDGE_MQTT_KEEPALIVE is 0: a broker that vanished without a word is never noticed")
}

// maxSessions is far beyond what one share is good for.
const maxSessions = 1000

// schemaName is what package migrations accepts.
var schemaName = regexp.MustCompile(`^[a-z_][a-z0-9_]{0,62}$`)

// loadRoutes reads and compiles the routes, and adds their variables to known.
func (cfg *config) loadRoutes(found *problems, known map[string]string) {
	settings := variablesOf("", &routeConfig{})
	for _, name := range cfg.Routes.value {
		route := routeConfig{Name: name}
		routePrefix := prefix + "_ROUTE_" + strings.ToUpper(name)
		variables := prefixed(routePrefix, settings)
		for _, v := range variables {
			if other, taken := known[v.name]; taken {
				found.add("BRIDGE_ROUTES", name, fmt.Sprintf("expected another name: route %s reads %s as well", other, v.name))
			}
			known[v.name] = name
		}
		found.unquote(variables)
		if err := envconfig.Process(routePrefix, &route); err != nil { // all are text
			found.add("BRIDGE_ROUTES", name, err.Error())
		}
		cfg.routeConfigs = append(cfg.routeConfigs, mapping.RouteConfig(route))
	}
	for _, name := range meantNames(cfg.Routes.text) { // the name is wrong, its settings need not be
		for _, v := range prefixed(prefix+"_ROUTE_"+strings.ToUpper(name), settings) {
			if _, taken := known[v.name]; !taken {
				known[v.name] = name
			}
		}
	}
	if cfg.Routes.mistake != "" && len(cfg.routeConfigs) == 0 {
		return // the default route is not what was asked for
	}
	routes, err := mapping.Compile(cfg.routeConfigs)
	if err != nil {
		found.addErrors(err)
		return
	}
	cfg.routes = routes
	cfg.warnings = append(cfg.warnings, routes.Warnings()...)
	for _, route := range routes.All() {
		cfg.warnAboutRetention(route)
	}
	cfg.warnAboutStatusTopic()
	if cfg.MQTT.QoS.value == 2 {
		cfg.warnings = append(cfg.warnings, "BRIDGE_MQTT_QOS=2 takes two more packets for each message and gives nothing that 1 does not give: "+
			"redeliveries are recognised by the ledger and the route's key either way, and what publishers send with QoS 2 reaches the broker once")
	}
	keyless := func(r *mapping.Route) bool { return !r.Keyed }
	if len(cfg.MQTT.URLs.value) > 1 && cfg.MQTT.CommonSessions.value == "off" && slices.ContainsFunc(routes.All(), keyless) {
		cfg.warnings = append(cfg.warnings, "several addresses in BRIDGE_MQTT_URLS: after a change from one to another, routes without a key may write once more "+
			"what was just committed; set BRIDGE_MQTT_COMMON_SESSIONS=on if they are one cluster that shares its sessions")
	}
	for _, route := range cfg.routeConfigs {
		if strings.TrimSpace(route.Retained) == "store" && cfg.MQTT.Mode.value == "shared" {
			cfg.warnings = append(cfg.warnings, fmt.Sprintf("BRIDGE_ROUTE_%s_RETAINED: store has no effect on shared subscriptions, to which brokers send no retained messages; "+
				"BRIDGE_MQTT_MODE=exclusive gets them (what is published while the bridge is subscribed is stored in any case)", strings.ToUpper(route.Name)))
		}
	}
}

// widths are the least widths of partitions.
var widths = map[mapping.Partition]time.Duration{
	mapping.PartitionDay: 24 * time.Hour, mapping.PartitionWeek: 7 * 24 * time.Hour, mapping.PartitionMonth: 28 * 24 * time.Hour,
}

// warnAboutRetention: rows go a partition at a time, so a retention shorter than one means little.
func (cfg *config) warnAboutRetention(route *mapping.Route) {
	t := &route.Table
	if width := widths[t.Partition]; t.Retention > 0 && t.Retention < width {
		cfg.warnings = append(cfg.warnings, fmt.Sprintf("BRIDGE_ROUTE_%s_RETENTION (%s) is shorter than a partition (%s): a partition is dropped when all of it is older, "+
			"so rows stay for up to a %[3]s longer", strings.ToUpper(route.Name), mapping.RetentionText(t.Retention), t.Partition))
	}
}

// warnAboutStatusTopic: a bridge that is subscribed to its own status writes it to the route's table.
func (cfg *config) warnAboutStatusTopic() {
	if cfg.MQTT.StatusTopic.value == "" {
		return
	}
	told := map[string]bool{}
	for i := range min(cfg.MQTT.Sessions.value, maxSessions) {
		topic := fmt.Sprintf("%s/%s-%d", cfg.MQTT.StatusTopic.value, cfg.clientIDPrefix(), i)
		for _, outcome := range cfg.routes.Map(&mapping.Message{Topic: topic}, nil) {
			if name := outcome.Route.Name; !told[name] {
				told[name] = true
				cfg.warnings = append(cfg.warnings, fmt.Sprintf("BRIDGE_MQTT_STATUS_TOPIC: route %s takes the bridge's own status for messages of devices: its filter matches %s", name, topic))
			}
		}
	}
}

// clientIDPrefix begins the client ids.
func (cfg *config) clientIDPrefix() string {
	if p := cfg.MQTT.ClientIDPrefix.value; p != "" {
		return p
	}
	return cfg.MQTT.ShareName.value
}

// effective is every variable with the value in force, for the log: without secrets.
func (cfg *config) effective() map[string]string {
	all := map[string]string{}
	for _, v := range variablesOf(prefix, cfg) {
		_, text, _ := v.setting.described()
		if text != "" {
			all[v.name] = v.shown()
		}
	}
	all["BRIDGE_MQTT_URLS"] = strings.Join(cfg.brokers(), ",")
	all["BRIDGE_DATABASE_URL"] = cfg.databaseName()
	return all
}

// brokers are the broker URLs without user information and query, where a token may stand.
func (cfg *config) brokers() []string {
	var list []string
	for _, u := range cfg.MQTT.URLs.value {
		list = append(list, (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String())
	}
	return list
}

// databaseName says which database is meant, without the password.
func (cfg *config) databaseName() string {
	c := cfg.pool.ConnConfig
	return fmt.Sprintf("%s@%s:%d/%s", c.User, c.Host, c.Port, c.Database)
}
