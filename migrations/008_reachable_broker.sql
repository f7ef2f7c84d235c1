-- A replica that has lost the broker, and the broker alone, gives its sessions to one that reaches it.
alter table {{.schema}}.replicas add column reaches_broker boolean;
comment on column {{.schema}}.replicas.reaches_broker is 'Whether the process reaches the broker, as of its last heartbeat; null: it does not tell (no session and no need to try, or an older release).';
