#!/bin/sh
# The start of the stand-in postgres image: the part of the official image's
# contract that the tests use (POSTGRES_USER, POSTGRES_PASSWORD, POSTGRES_DB,
# PGDATA, arguments that begin with a dash, never as root).
set -eu

case ${1:-postgres} in
-*) set -- postgres "$@" ;;
esac
[ "$1" = postgres ] || exec "$@"

if [ "$(id -u)" = 0 ]; then
  mkdir -p "$PGDATA" /run/postgresql
  chmod 700 "$PGDATA"
  chown -R postgres:postgres "$PGDATA" /run/postgresql
  exec setpriv --reuid postgres --regid postgres --clear-groups "$0" "$@"
fi

if [ ! -s "$PGDATA/PG_VERSION" ]; then
  user=${POSTGRES_USER:-postgres}
  database=${POSTGRES_DB:-$user}
  if [ -z "${POSTGRES_PASSWORD:-}" ]; then
    echo 'POSTGRES_PASSWORD is not set: a server open to everybody is not made' >&2
    exit 1
  fi
  secret=/tmp/initdb-password
  (umask 077 && printf '%s\n' "$POSTGRES_PASSWORD" >"$secret")
  initdb --username="$user" --pwfile="$secret" --no-sync --encoding=UTF8 --locale=C.UTF-8
  rm "$secret"
  printf '\nhost all all all scram-sha-256\n' >>"$PGDATA/pg_hba.conf"
  if [ "$database" != postgres ]; then
    # A server on the local socket alone: nobody connects before all is made.
    pg_ctl -D "$PGDATA" -o "-c listen_addresses=''" -w start
    createdb --username="$user" --no-password "$database"
    pg_ctl -D "$PGDATA" -m fast -w stop
  fi
fi
exec "$@"
