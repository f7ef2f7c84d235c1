#!/usr/bin/env bash
# docker.sh up | down: a Docker engine on a machine that has none.
#
# up    does nothing when an engine answers; otherwise installs Debian's
#       packages and starts dockerd without systemd (root only).
# down  stops the engine that "up" started, and no other.
set -euo pipefail
# shellcheck source=integration/setup/lib.sh
. "$(dirname "$0")/lib.sh"

pid_file=$cache_dir/dockerd.pid
log_file=$cache_dir/dockerd.log

ours() { # the process id of the engine that "up" started, if it still runs
  local pid
  [ -r "$pid_file" ] && pid=$(cat "$pid_file") && [ -n "$pid" ] || return 1
  # The number may have gone to another process since.
  [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = dockerd ] || return 1
  printf '%s\n' "$pid"
}

mount_cgroups() {
  mountpoint -q /sys/fs/cgroup && return 0
  # A bare machine without an init system: version 1 hierarchies, one mount
  # per controller, which every engine understands.
  mount -t tmpfs -o uid=0,gid=0,mode=0755 cgroup /sys/fs/cgroup
  local controller
  awk '!/^#/ && $4 == 1 { print $1 }' /proc/cgroups | while read -r controller; do
    mkdir -p "/sys/fs/cgroup/$controller"
    mount -n -t cgroup -o "$controller" cgroup "/sys/fs/cgroup/$controller" || rmdir "/sys/fs/cgroup/$controller"
  done
}

up() {
  if engine_answers; then
    say "a Docker engine answers"
    return 0
  fi
  if ! find_tool dockerd >/dev/null; then
    if [ "$(id -u)" != 0 ] || ! has apt-get; then
      die "no Docker engine answers, and installing one needs root and apt-get: install Docker and start it"
    fi
    apt_install docker.io iptables iproute2
  fi
  # Newer Debian splits the client off; older has it inside docker.io.
  has docker || apt_install docker-cli
  [ "$(id -u)" = 0 ] || die "a Docker engine is installed, but none answers: start it (sudo systemctl start docker)"

  mount_cgroups
  say "starting dockerd"
  # A session of its own and no inherited files: neither Ctrl-C nor a waiting
  # parent may reach it.
  PATH="$PATH:/usr/sbin:/sbin" setsid dockerd --pidfile "$pid_file" >"$log_file" 2>&1 </dev/null &
  local tries
  for ((tries = 0; tries < 120; tries++)); do
    if engine_answers; then
      say "Docker engine $(docker version --format '{{.Server.Version}}') answers"
      return 0
    fi
    sleep 0.5
  done
  tail -n 30 "$log_file" >&2
  die "dockerd does not answer after a minute, its last words are above"
}

down() {
  local pid tries
  pid=$(ours) || return 0
  say "stopping dockerd"
  kill -TERM "$pid"
  for ((tries = 0; tries < 60; tries++)); do
    [ -d "/proc/$pid" ] || return 0
    sleep 0.5
  done
  die "dockerd (process $pid) is still there after 30 seconds"
}

case ${1:-} in
up) up ;;
down) down ;;
*) die "usage: docker.sh up|down" ;;
esac
