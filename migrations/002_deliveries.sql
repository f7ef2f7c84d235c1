create table {{.schema}}.deliveries (
    share_name   text        not null,
    index        integer     not null,
    batch        bigint      not null,
    epoch        bigint      not null,
    incarnation  bigint      not null,
    first        bigint      not null,
    packet_ids   bytea       not null,
    hashes       bytea       not null,
    committed_at timestamptz not null default now(),
    primary key (share_name, index, batch)
);
comment on table  {{.schema}}.deliveries is 'Delivery ledger: the last deliveries of each session whose outcome is committed, one row a batch, written in the batch''s own transaction. A redelivery that stands here is acknowledged without being written again.';
comment on column {{.schema}}.deliveries.share_name   is 'MQTT Share Name of the session.';
comment on column {{.schema}}.deliveries.index        is 'Number of the session within the share.';
comment on column {{.schema}}.deliveries.batch        is 'Number of the batch within the session; rises by one.';
comment on column {{.schema}}.deliveries.epoch        is 'Fencing epoch under which it was committed.';
comment on column {{.schema}}.deliveries.incarnation  is 'Rises whenever the broker says Session Present 0: packet identifiers of an earlier incarnation mean nothing.';
comment on column {{.schema}}.deliveries.first        is 'Number of the first delivery of the batch; deliveries of QoS 1 and 2 are counted per session.';
comment on column {{.schema}}.deliveries.packet_ids   is 'Packet Identifiers in the order of receipt, two bytes each.';
comment on column {{.schema}}.deliveries.hashes       is 'Content hashes in the same order, eight bytes each.';
comment on column {{.schema}}.deliveries.committed_at is 'By the clock of the database.';

alter table {{.schema}}.sessions add column incarnation bigint not null default 0;
comment on column {{.schema}}.sessions.incarnation is 'Of the broker''s session, see deliveries.incarnation; stored before the first subscription of a new one where the database allows, and with its first batch at the latest.';

alter table {{.schema}}.sessions add column subscriptions text[] not null default '{}';
alter table {{.schema}}.sessions add column retired_at timestamptz;
comment on column {{.schema}}.sessions.subscriptions is 'Everything that the broker''s session may be subscribed to: what is not wanted any more is unsubscribed by the next owner.';
comment on column {{.schema}}.sessions.retired_at    is 'When the session was drained and ended at the broker; null: it is in use. The row stays, for its epoch must never fall.';
