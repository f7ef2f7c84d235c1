# shellcheck shell=bash
# What the set-up scripts share. Sourced, never run.

setup_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repo_dir=$(cd "$setup_dir/../.." && pwd)
cache_dir=${BRIDGE_CACHE_DIR:-$repo_dir/.cache}
mkdir -p "$cache_dir"

say() { printf 'setup: %s\n' "$*" >&2; }
die() {
  say "$*"
  exit 1
}

has() { type -P "$1" >/dev/null; }

# find_tool NAME: where a program is, also in the system directories that an
# ordinary user's PATH leaves out.
find_tool() {
  PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin" type -P "$1"
}

# postgres_bin: the directory with initdb and postgres, newest version first.
postgres_bin() {
  local dir
  for dir in ${PG_BIN:+"$PG_BIN"} $(printf '%s\n' /usr/lib/postgresql/*/bin | sort -rV) \
    /usr/pgsql-*/bin /opt/homebrew/opt/postgresql@*/bin /usr/local/opt/postgresql@*/bin; do
    if [ -x "$dir/initdb" ] && [ -x "$dir/postgres" ]; then
      printf '%s\n' "$dir"
      return 0
    fi
  done
  if has pg_config && dir=$(pg_config --bindir) && [ -x "$dir/initdb" ]; then
    printf '%s\n' "$dir"
    return 0
  fi
  return 1
}

# engine_answers: whether a Docker engine can be talked to. A stuck engine
# counts as none.
engine_answers() {
  has docker && timeout 10 docker version >/dev/null 2>&1
}

# apt_install PACKAGE...: installs what is missing and starts nothing, because
# the tests start their own servers on ports of their own.
apt_install() {
  local package missing=()
  for package in "$@"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  if [ "$(id -u)" != 0 ] || ! has apt-get; then
    die "missing: ${missing[*]}. Install them with your package manager (on Debian or Ubuntu: sudo apt-get install ${missing[*]}), or start a Docker engine."
  fi
  say "installing ${missing[*]}"
  (
    export DEBIAN_FRONTEND=noninteractive UCF_FORCE_CONFFOLD=1
    policy=/usr/sbin/policy-rc.d
    cluster=/etc/postgresql-common/createcluster.conf
    undo=()
    # shellcheck disable=SC2317 # called by the trap
    tidy() { [ ${#undo[@]} -eq 0 ] || rm -f "${undo[@]}"; }
    trap tidy EXIT
    if [ ! -e "$policy" ]; then
      undo+=("$policy")
      printf '#!/bin/sh\nexit 101\n' >"$policy"
      chmod 755 "$policy"
    fi
    # Without this the postgresql package makes a cluster that nobody asked for.
    if [ ! -e "$cluster" ]; then
      mkdir -p "${cluster%/*}"
      printf 'create_main_cluster = false\n' >"$cluster"
    fi
    # Nothing of the machine's has to go for the sake of a test.
    install=(apt-get install -y -qq --no-install-recommends --no-remove
      -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold "${missing[@]}")
    log=$cache_dir/apt.log
    # A machine fresh from its image has no package lists, an old one has stale ones.
    apt-get update -qq >"$log" 2>&1 </dev/null || true
    "${install[@]}" >>"$log" 2>&1 </dev/null || {
      tail -n 30 "$log" >&2
      die "apt-get install ${missing[*]} went wrong, see above"
    }
  )
}
