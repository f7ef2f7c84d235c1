#!/usr/bin/env bash
# prepare.sh: finds or installs what the tests need, and says what it chose.
#
# The tests need one of
#   a Docker engine that answers (then images are pulled as usual), or
#   a Mosquitto broker and PostgreSQL server programs on this machine.
# On a Debian or Ubuntu machine as root the second is installed when neither is
# there. With CI=true both are wanted, the engine is started when none answers,
# and the images are made from the machine's own packages.
#
# Quick when everything is there; safe to run again at any time.
set -euo pipefail
# shellcheck source=integration/setup/lib.sh
. "$(dirname "$0")/lib.sh"

have_programs() { find_tool mosquitto >/dev/null && postgres_bin >/dev/null; }

if [ "${CI:-}" = true ]; then
  # prometheus has promtool, which checks the alert rules.
  apt_install mosquitto mosquitto-clients postgresql prometheus
  bash "$setup_dir/docker.sh" up
  bash "$setup_dir/images.sh" postgres mosquitto golang distroless
  # Kubernetes and the image are compiled while the other tests wait for servers. The tests that need Kubernetes wait
  # for it; those of the image build it again, as integration/image does, from the layers that are there by then.
  bash "$setup_dir/kubernetes.sh" packages
  setsid nice -n 19 bash -c '
    bash "$1/kubernetes.sh" build >"$2/kubernetes-build.log" 2>&1
    make -C "$3" --no-print-directory image IMAGE=bridge:prepared VERSION=v0.0.0-image-test COMMIT=abc1234 >"$2/image-build.log" 2>&1
  ' - "$setup_dir" "$cache_dir" "$repo_dir" </dev/null &
  exit 0
fi

if engine_answers; then
  say "a Docker engine answers: the tests use containers"
elif have_programs; then
  say "no Docker engine: the tests use $(find_tool mosquitto) and $(postgres_bin)"
else
  apt_install mosquitto mosquitto-clients postgresql
  have_programs || die "the packages are installed, yet mosquitto or the PostgreSQL server programs are not where they are looked for"
fi
