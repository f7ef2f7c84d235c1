-- What every batch does beside its rows. In a function it is planned once per connection of the server, also
-- behind a pooler that allows no prepared statements.

-- synchronous_commit=off would report commits that a crash of the server can still lose. The keepalives make
-- the server notice within half a minute that a bridge is gone, so that its locks do not outlive it.
create function {{.schema}}.begin_batch(
    lock_wait text, idle_wait text, statement_wait text,
    the_share text, the_index integer, the_epoch bigint,
    the_batch bigint, the_incarnation bigint, the_first bigint, the_confirmed bigint, the_connection bigint,
    the_packet_ids bytea, the_hashes bytea
) returns void
language plpgsql as $$
begin
    perform set_config('lock_timeout', lock_wait, true), set_config('idle_in_transaction_session_timeout', idle_wait, true),
        set_config('statement_timeout', statement_wait, true),
        set_config('tcp_keepalives_idle', '15', true), set_config('tcp_keepalives_interval', '5', true), set_config('tcp_keepalives_count', '3', true);
    if current_setting('synchronous_commit') = 'off' then
        perform set_config('synchronous_commit', 'local', true);
    end if;
    perform 1 from {{.schema}}.sessions s
    where s.share_name = the_share and s.index = the_index and s.epoch = the_epoch
    for share;
    if not found then
        raise exception using
            errcode = 'BR001',
            message = format('session %s of share %s is no longer held with epoch %s', the_index, the_share, the_epoch);
    end if;
    insert into {{.schema}}.deliveries (share_name, index, batch, epoch, incarnation, first, confirmed, connection, packet_ids, hashes)
    values (the_share, the_index, the_batch, the_epoch, the_incarnation, the_first, the_confirmed, the_connection, the_packet_ids, the_hashes);
end
$$;
comment on function {{.schema}}.begin_batch(text, text, text, text, integer, bigint, bigint, bigint, bigint, bigint, bigint, bytea, bytea) is
    'Sets the limits of a batch''s transaction, checks the fence as fence() does, and enters the batch in the delivery ledger.';
