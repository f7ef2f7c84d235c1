create table {{.schema}}.replicas (
    id           text        primary key,
    share_name   text        not null,
    host         text        not null,
    started_at   timestamptz not null default now(),
    heartbeat_at timestamptz not null default now()
);
comment on table  {{.schema}}.replicas is 'The bridge processes that take part in a share. A row whose heartbeat is older than the lease TTL is a process that died or lost its database.';
comment on column {{.schema}}.replicas.id           is 'Drawn at random when the process starts.';
comment on column {{.schema}}.replicas.share_name   is 'MQTT Share Name of the sessions it competes for.';
comment on column {{.schema}}.replicas.host         is 'Host name of the process, for people.';
comment on column {{.schema}}.replicas.started_at   is 'First heartbeat, by the clock of the database.';
comment on column {{.schema}}.replicas.heartbeat_at is 'Last heartbeat, by the clock of the database.';

create table {{.schema}}.sessions (
    share_name  text    not null,
    index       integer not null check (index >= 0),
    client_id   text    not null,
    owner       text,
    epoch       bigint  not null default 0,
    acquired_at timestamptz,
    primary key (share_name, index)
);
comment on table  {{.schema}}.sessions is 'The fixed set of MQTT sessions of a share, each leased to one bridge process at a time.';
comment on column {{.schema}}.sessions.share_name  is 'MQTT Share Name.';
comment on column {{.schema}}.sessions.index       is 'Number of the session within the share, from 0.';
comment on column {{.schema}}.sessions.client_id   is 'MQTT Client Identifier of the session.';
comment on column {{.schema}}.sessions.owner       is 'replicas.id of the process that holds the session; null: free.';
comment on column {{.schema}}.sessions.epoch       is 'Fencing epoch: rises with every change of hands; a batch of an older epoch is refused.';
comment on column {{.schema}}.sessions.acquired_at is 'When the owner took it, by the clock of the database.';

create table {{.schema}}.dead_letters (
    id          uuid        primary key,
    route       text        not null,
    topic       text        not null,
    payload     bytea       not null,
    qos         smallint    not null,
    retain      boolean     not null,
    properties  jsonb       not null default '{}',
    received_at timestamptz not null,
    reason      text        not null,
    detail      text        not null default '',
    attempts    integer     not null default 0,
    replayed_at timestamptz,
    created_at  timestamptz not null default now()
);
create index dead_letters_route_received_at_idx on {{.schema}}.dead_letters (route, received_at);
comment on table  {{.schema}}.dead_letters is 'Messages that could not be written, kept whole so that they can be replayed.';
comment on column {{.schema}}.dead_letters.id          is 'UUIDv7: time of receipt in front.';
comment on column {{.schema}}.dead_letters.route       is 'The route that could not take the message; none: no route matched the topic.';
comment on column {{.schema}}.dead_letters.topic       is 'MQTT Topic Name.';
comment on column {{.schema}}.dead_letters.payload     is 'The exact bytes of the payload.';
comment on column {{.schema}}.dead_letters.qos         is 'QoS it was delivered with.';
comment on column {{.schema}}.dead_letters.retain      is 'RETAIN flag it was delivered with.';
comment on column {{.schema}}.dead_letters.properties  is 'MQTT properties that are present: content_type, correlation_data (base64), user_properties ([[name, value], ...] in order).';
comment on column {{.schema}}.dead_letters.received_at is 'When the bridge received it.';
comment on column {{.schema}}.dead_letters.reason      is 'Reason code, the same set as the label of bridge_messages_dead_lettered_total.';
comment on column {{.schema}}.dead_letters.detail      is 'What was wrong, for people.';
comment on column {{.schema}}.dead_letters.attempts    is 'How often a replay was tried.';
comment on column {{.schema}}.dead_letters.replayed_at is 'When a replay wrote it; null: it still waits.';
comment on column {{.schema}}.dead_letters.created_at  is 'When it was committed.';

-- The share lock makes a change of hands wait for a batch that has already passed the fence, so that
-- the new owner never starts before the old owner's last commit is visible.
create function {{.schema}}.fence(the_share text, the_index integer, the_epoch bigint) returns void
language plpgsql as $$
begin
    perform 1 from {{.schema}}.sessions s
    where s.share_name = the_share and s.index = the_index and s.epoch = the_epoch
    for share;
    if not found then
        raise exception using
            errcode = 'BR001',
            message = format('session %s of share %s is no longer held with epoch %s', the_index, the_share, the_epoch);
    end if;
end
$$;
comment on function {{.schema}}.fence(text, integer, bigint) is 'Raises BR001 unless the session is still held with this fencing epoch. Every batch of a leased session begins with it.';
