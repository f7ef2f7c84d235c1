alter table {{.schema}}.sessions add column connections bigint not null default 0;
alter table {{.schema}}.sessions add column broker text not null default '';
comment on column {{.schema}}.sessions.connections is 'Connections to the broker begun so far; raised before CONNECT where the database allows.';
comment on column {{.schema}}.sessions.broker      is 'Host and port of the broker whose session the ledger tells of; empty: not known, or one cluster behind several addresses.';

alter table {{.schema}}.deliveries add column confirmed bigint not null default 0;
alter table {{.schema}}.deliveries add column connection bigint not null default 0;
comment on column {{.schema}}.deliveries.confirmed  is 'Deliveries up to this number were acknowledged, and the broker had certainly seen so.';
comment on column {{.schema}}.deliveries.connection is 'Number of the connection (sessions.connections) that brought the last delivery without DUP.';
comment on column {{.schema}}.deliveries.packet_ids is 'Packet Identifiers in the order of receipt, two bytes each. 0 is a mark: the broker went back to the identifier that follows (hash 0), uses identifiers out of sequence (hash 1), or counts after all (hash 2).';
