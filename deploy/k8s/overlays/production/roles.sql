-- The two roles of this overlay. Run it once, in the database of the bridge, as an administrator, with
-- passwords of your own. On a managed database, whose administrator is no superuser, first
-- `grant bridge_owner to current_user` after the role is made.

create role bridge_owner login password 'change-me';
create role bridge_writer login password 'change-me';

-- The owner makes tables: the bridge's own in schema bridge, those of the routes in schema public.
create schema bridge authorization bridge_owner;
grant usage, create on schema public to bridge_owner;
-- The default since PostgreSQL 15, but not of a database that came from an older one.
revoke create on schema public from public;

-- The writer uses what the owner has made, and will have made after the next release.
-- For routes with tables in another schema: both roles' usage of it, the owner's create, and a line like the last.
grant usage on schema bridge, public to bridge_writer;
alter default privileges for role bridge_owner in schema bridge grant select, insert, update, delete on tables to bridge_writer;
alter default privileges for role bridge_owner in schema public grant select, insert on tables to bridge_writer;
