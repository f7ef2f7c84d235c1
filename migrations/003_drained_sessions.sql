alter table {{.schema}}.sessions add column drain_requested_at timestamptz;
comment on column {{.schema}}.sessions.drain_requested_at is 'When bridge sessions drain took the session out of use; null: it is in use as far as BRIDGE_MQTT_SESSIONS reaches.';
comment on table  {{.schema}}.replicas is 'The bridge processes that take part in a share. A row whose heartbeat stands still is a process that died or lost its database.';
comment on column {{.schema}}.replicas.heartbeat_at is 'Last heartbeat, by the clock of the database. That it moves is what counts: no clock is compared with it.';
