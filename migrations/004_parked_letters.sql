-- Every bridge looks for parked messages every few seconds, also beside millions of other letters.
create index dead_letters_parked_idx on {{.schema}}.dead_letters (route, id) where reason = 'table_unusable' and replayed_at is null;
