#!/usr/bin/env bash
# images.sh [postgres] [mosquitto] [golang] [distroless]: stand-in images for
# machines that reach no image registry, made from this machine's own programs
# and the libraries that they link.
#
# An image of that name that is there already is left alone, unless it is an
# outdated stand-in. The stand-ins keep the part of the originals' behaviour
# that the tests and the Dockerfile rely on, and no more.
set -euo pipefail
# shellcheck source=integration/setup/lib.sh
. "$(dirname "$0")/lib.sh"

label=org.mqttpg.bridge.stand-in
export DOCKER_BUILDKIT=0 # the classic builder needs no plugin and takes a tar on stdin

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# current TAG VERSION: whether TAG needs no work: a real image, or our stand-in
# of this VERSION.
current() {
  local found
  found=$(docker image inspect --format "{{index .Config.Labels \"$label\"}}" "$1" 2>/dev/null) || return 1
  [ -z "$found" ] || [ "$found" = "$2" ]
}

version() { { cat "$setup_dir/images.sh" && printf '%s\n' "$@"; } | cksum | tr -d ' '; }

# take TREE PATH...: copies files and directories of this machine to the same
# place in TREE, with what a link points at.
take() {
  local tree=$1 path target
  shift
  for path in "$@"; do
    mkdir -p "$tree${path%/*}"
    cp -a --no-preserve=ownership "$path" "$tree${path%/*}/"
    if [ -L "$path" ]; then
      target=$(readlink -f "$path")
      [ -e "$tree$target" ] || take "$tree" "$target"
    fi
  done
}

# link_libraries TREE: adds every shared library that a program or module in
# TREE needs.
link_libraries() {
  local tree=$1 library
  find "$tree" -type f \( -perm -u+x -o -name '*.so*' \) -printf '/%P\n' |
    xargs -r -n 50 ldd 2>/dev/null |
    sed -nE 's#^\t(.* => )?(/[^ ]+) \(0x[0-9a-f]+\)$#\2#p' | sort -u |
    while read -r library; do
      [ -e "$tree$library" ] || install -D -m 755 "$(readlink -f "$library")" "$tree$library"
    done || true # ldd's complaint about a static program is no failure
}

# skeleton TREE: the merged directories, accounts, certificates and time zones.
skeleton() {
  local tree=$1 dir
  mkdir -p "$tree"/{usr/{bin,sbin,lib,lib64,share},etc/ssl/certs,tmp,run,root,proc,sys,dev,var,home/nonroot}
  chmod 1777 "$tree/tmp"
  for dir in bin sbin lib lib64; do ln -s "usr/$dir" "$tree/$dir"; done
  ln -s ../run "$tree/var/run"
  printf '%s\n' 'root:x:0:0::/root:/bin/sh' \
    'postgres:x:999:999::/var/lib/postgresql:/bin/sh' \
    'mosquitto:x:1883:1883::/mosquitto:/bin/false' \
    'nonroot:x:65532:65532::/home/nonroot:/bin/false' \
    'nobody:x:65534:65534::/nonexistent:/bin/false' >"$tree/etc/passwd"
  printf '%s\n' 'root:x:0:' 'postgres:x:999:' 'mosquitto:x:1883:' 'nonroot:x:65532:' 'nogroup:x:65534:' >"$tree/etc/group"
  printf 'hosts: files dns\n' >"$tree/etc/nsswitch.conf"
  chown 65532:65532 "$tree/home/nonroot"
  take "$tree" /usr/share/zoneinfo
  rm -rf "$tree"/usr/share/zoneinfo/{right,posix,localtime,posixrules}
  if [ -e /etc/ssl/certs/ca-certificates.crt ]; then
    cp -L /etc/ssl/certs/ca-certificates.crt "$tree/etc/ssl/certs/"
  fi
}

# programs TREE NAME...: a shell and these small programs.
programs() {
  local tree=$1 name path
  shift
  for name in sh "$@"; do
    path=$(find_tool "$name") || die "$name is needed to make an image and is not installed"
    install -D -m 755 "$(readlink -f "$path")" "$tree/usr/bin/$name"
  done
}

# image TREE TAG VERSION: makes the image; the Dockerfile's lines after ADD come
# on stdin.
image() {
  local tree=$1 tag=$2 version=$3
  {
    printf 'FROM scratch\nADD root.tar /\nLABEL %s=%s\n' "$label" "$version"
    cat
  } >"$work/Dockerfile"
  tar -C "$tree" --sort=name --mtime=@0 --numeric-owner -cf "$work/root.tar" .
  rm -rf "$tree"
  tar -C "$work" -c Dockerfile root.tar | docker build --quiet --tag "$tag" - >/dev/null 2>"$work/err" || {
    cat "$work/err" >&2
    die "the image $tag could not be made"
  }
  rm "$work/root.tar"
  say "made image $tag, $(docker image inspect --format '{{.Size}}' "$tag" | numfmt --to=iec)"
}

postgres() {
  local tag=${BRIDGE_TEST_POSTGRES_IMAGE:-postgres:15} bin major tree=$work/postgres v
  if docker image inspect "$tag" >/dev/null 2>&1; then
    v=$(docker image inspect --format "{{index .Config.Labels \"$label\"}}" "$tag")
    [ -n "$v" ] || return 0
  fi
  bin=$(postgres_bin) || die "the PostgreSQL server programs are needed to make $tag: install postgresql"
  v=$(version "$("$bin/postgres" --version)")
  if current "$tag" "$v"; then return 0; fi
  major=$("$bin/postgres" --version | sed -E 's/^[^0-9]*([0-9]+).*/\1/')
  [ "$major" = "${tag##*:}" ] || die "this machine has PostgreSQL $major, the tests ask for $tag: set BRIDGE_TEST_POSTGRES_IMAGE=postgres:$major"

  skeleton "$tree"
  programs "$tree" id mkdir chmod chown setpriv cat rm sleep
  take "$tree" "$bin" "${bin%/bin}/lib" "/usr/share/postgresql/$major" /usr/lib/locale/C.utf8
  # Just-in-time compilation would bring 100 MB of LLVM for queries that tests
  # do not have.
  rm -rf "$tree${bin%/bin}"/lib/{bitcode,llvmjit*,pgxs} "$tree/usr/share/postgresql/$major/man"
  printf "listen_addresses = '*'\n" >>"$tree/usr/share/postgresql/$major/postgresql.conf.sample"
  mkdir -p "$tree"/var/lib/postgresql/data "$tree/run/postgresql" "$tree/docker-entrypoint-initdb.d"
  chown -R 999:999 "$tree/var/lib/postgresql" "$tree/run/postgresql"
  chmod 700 "$tree/var/lib/postgresql/data"
  install -m 755 "$setup_dir/postgres-entrypoint.sh" "$tree/usr/bin/docker-entrypoint.sh"
  link_libraries "$tree"
  image "$tree" "$tag" "$v" <<EOT
ENV PATH=$bin:/usr/bin LANG=C.UTF-8 PGDATA=/var/lib/postgresql/data PG_MAJOR=$major
VOLUME /var/lib/postgresql/data
STOPSIGNAL SIGINT
EXPOSE 5432
ENTRYPOINT ["docker-entrypoint.sh"]
CMD ["postgres"]
EOT
}

mosquitto() {
  local tag=${BRIDGE_TEST_MOSQUITTO_IMAGE:-eclipse-mosquitto:2} bin tree=$work/mosquitto v
  bin=$(find_tool mosquitto) || die "mosquitto is needed to make $tag: install mosquitto"
  v=$(version "$(cksum <"$bin")")
  if current "$tag" "$v"; then return 0; fi

  skeleton "$tree"
  programs "$tree" cat sleep
  take "$tree" "$bin" /usr/bin/mosquitto_pub /usr/bin/mosquitto_sub
  mkdir -p "$tree"/mosquitto/{config,data,log}
  printf '%s\n' 'listener 1883' 'allow_anonymous true' >"$tree/mosquitto/config/mosquitto.conf"
  chown -R 1883:1883 "$tree/mosquitto"
  link_libraries "$tree"
  image "$tree" "$tag" "$v" <<EOT
ENV PATH=/usr/sbin:/usr/bin
VOLUME ["/mosquitto/data", "/mosquitto/log"]
EXPOSE 1883
CMD ["$bin", "-c", "/mosquitto/config/mosquitto.conf"]
EOT
}

golang() {
  local tag=golang:1.26 root tree=$work/golang v
  has go || die "the Go toolchain is needed to make $tag"
  v=$(version "$(go version)")
  if current "$tag" "$v"; then return 0; fi
  go version | grep -q ' go1\.26' || die "this machine has $(go version), the Dockerfile asks for $tag"

  root=$(go env GOROOT)
  skeleton "$tree"
  programs "$tree" cat mkdir rm env
  mkdir -p "$tree/usr/local/go" "$tree/go"
  tar -C "$root" --exclude=./test --exclude=./api --exclude=./doc --exclude='*_test.go' --exclude=testdata -c . |
    tar -C "$tree/usr/local/go" --no-same-owner -x
  link_libraries "$tree"
  image "$tree" "$tag" "$v" <<'EOT'
ENV PATH=/go/bin:/usr/local/go/bin:/usr/bin GOPATH=/go GOTOOLCHAIN=local HOME=/root
WORKDIR /go
EOT
}

distroless() {
  local tag=gcr.io/distroless/static-debian12:nonroot tree=$work/distroless v
  v=$(version)
  if current "$tag" "$v"; then return 0; fi
  skeleton "$tree" # no program and no library: that is the point of it
  image "$tree" "$tag" "$v" <<'EOT'
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
USER 65532
WORKDIR /home/nonroot
EOT
}

[ $# -gt 0 ] || set -- postgres mosquitto golang distroless
for name in "$@"; do
  case $name in
  postgres | mosquitto | golang | distroless) "$name" ;;
  *) die "no recipe for an image named $name" ;;
  esac
done
