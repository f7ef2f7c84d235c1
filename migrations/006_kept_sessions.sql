-- Whether a broker that does not know a session has lost it, or has never had it.
alter table {{.schema}}.sessions add column kept boolean not null default false;
update {{.schema}}.sessions set kept = incarnation > 0 and retired_at is null;
comment on column {{.schema}}.sessions.kept is 'The broker has the session of this client id and is to keep it while nobody is connected; a broker that does not know it any more has lost it.';
