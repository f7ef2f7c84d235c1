#!/usr/bin/env bash
# kubernetes.sh COMMAND: a real Kubernetes cluster of two nodes on this machine, out of Debian's
# packages and one Go module. Root only.
#
# packages installs what is needed beside Kubernetes.
# build    compiles Kubernetes, 7 to 10 minutes the first time; the program is kept in
#          BRIDGE_KUBERNETES_CACHE (default ~/.cache/bridge-kubernetes).
# up       starts etcd, the control plane and two nodes, in half a minute.
# load IMAGE... brings images of the Docker engine to both nodes.
# kubectl ... talks to the cluster.
# kill NODE CONTAINER [SIGNAL] signals the first process of a container, by default SIGKILL. Nobody inside
#          of it could: it is process 1 there.
# unplug   cuts the nodes off from each other, without a word to either; plug joins them again.
# down     stops what "up" started, and nothing else.
#
# Each node lives in a network namespace of its own. They are joined with each other and with
# nothing else: no address of the machine changes, and no pod reaches the world. A kubelet sets a few
# of the kernel's variables for the whole machine; "down" gives them back the values they had before.
#
# NetworkPolicies are accepted and not enforced: the plugin that joins the pods knows none.
set -euo pipefail
# shellcheck source=integration/setup/lib.sh
. "$(dirname "$0")/lib.sh"

source_dir=$setup_dir/kubernetes
build_dir=${BRIDGE_KUBERNETES_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/bridge-kubernetes}
version=$(sed -nE 's#^\tk8s.io/kubernetes v([0-9.]+)$#\1#p' "$source_dir/hyperkube/go.mod")
hyperkube=$build_dir/hyperkube-$(cat "$source_dir"/hyperkube/* | cksum | cut -d' ' -f1)
# Two checkouts of the project may have a cluster each.
id=bridge-$(printf %s "$cache_dir" | cksum | cut -d' ' -f1)
run_dir=$(cd "$cache_dir" && pwd -P)/kubernetes # as the kernel lists its mounts
nodes=(n1 n2) # the control plane is on the first, and so are the volumes
pause=localhost/pause:1
kubelet_sets=(vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys kernel/keys/root_maxbytes)

address() { printf '10.99.0.%s\n' "${1#n}"; } # of a node
pods() { printf '10.244.%s.0/24\n' "${1#n}"; } # of a node's pods
inside() { nsenter --net="/run/netns/$id-$1" "${@:2}"; }
kubectl() { inside n1 "$hyperkube" kubectl --kubeconfig "$run_dir/pki/admin.conf" "$@"; }

# daemon NODE NAME PROGRAM...: starts a process in a node's network; its id and its log are in the
# state directory.
daemon() {
  local node=$1 name=$2
  shift 2
  setsid nsenter --net="/run/netns/$id-$node" "$@" >"$run_dir/$name.log" 2>&1 </dev/null &
  echo $! >"$run_dir/$name.pid"
}

# await SECONDS NAME COMMAND...: until the command succeeds, as long as the daemon NAME is there.
await() {
  local seconds=$1 name=$2 tries
  shift 2
  for ((tries = 0; tries < 5 * seconds; tries++)); do
    if "$@" >/dev/null 2>&1; then return 0; fi
    [ -d "/proc/$(cat "$run_dir/$name.pid")" ] || break
    sleep 0.2
  done
  tail -n 20 "$run_dir/$name.log" >&2
  die "$name does not come up, its last words are above"
}

packages() {
  [ "$(id -u)" = 0 ] || die "a cluster of one's own needs root; or set KUBECONFIG to another one"
  # Docker's own packages bring containerd and runc, too, and would have to make way for Debian's.
  local engine=() program
  for program in containerd runc; do has "$program" || engine+=("$program"); done
  apt_install etcd-server containernetworking-plugins iproute2 iptables openssl procps util-linux "${engine[@]}"
}

build() {
  packages
  mkdir -p "$build_dir"
  exec 9>"$build_dir/lock" # somebody else may be at it
  flock 9
  if [ ! -x "$hyperkube" ]; then
    say "compiling Kubernetes $version, which takes 7 to 10 minutes once; it is kept in $build_dir"
    local flags='-s -w' package
    for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
      flags+=" -X $package.gitVersion=v$version -X $package.gitMajor=${version%%.*}"
      flags+=" -X $package.gitMinor=$(cut -d. -f2 <<<"$version") -X $package.gitTreeState=clean"
    done
    (cd "$source_dir/hyperkube" && CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "$flags" -o "$hyperkube.new" .)
    mv "$hyperkube.new" "$hyperkube" # whoever sees it sees it whole
  fi
  if ! docker image inspect "$pause" >/dev/null 2>&1; then
    local work
    work=$(mktemp -d)
    (cd "$source_dir/pause" && CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '-s -w' -o "$work/pause" main.go)
    tar -C "$work" -c pause | docker import --change 'ENTRYPOINT ["/pause"]' --change 'USER 65535:65535' - "$pause" >/dev/null
    rm -rf "$work"
  fi
}

# certificate NAME SUBJECT [SAN]
certificate() {
  openssl ecparam -name prime256v1 -genkey -noout -out "$1.key"
  openssl req -new -key "$1.key" -subj "$2" -out "$1.csr"
  {
    printf 'extendedKeyUsage=clientAuth,serverAuth\nkeyUsage=digitalSignature\n'
    [ -z "${3:-}" ] || printf 'subjectAltName=%s\n' "$3"
  } >"$1.ext"
  openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -out "$1.crt" -extfile "$1.ext" 2>/dev/null
}

# who NAME SUBJECT [SAN]: a certificate, and a kubeconfig that shows it.
who() {
  certificate "$@"
  cat >"$1.conf" <<C
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://$(address n1):6443", certificate-authority: $PWD/ca.crt}}]
users: [{name: u, user: {client-certificate: $PWD/$1.crt, client-key: $PWD/$1.key}}]
contexts: [{name: c, context: {cluster: c, user: u}}]
current-context: c
C
}

certificates() {
  local node
  mkdir -p "$run_dir/pki"
  cd "$run_dir/pki"
  openssl ecparam -name prime256v1 -genkey -noout -out ca.key
  openssl req -x509 -new -key ca.key -subj /CN=kubernetes -days 30 -out ca.crt
  openssl genrsa -out accounts.key 2048 2>/dev/null
  openssl rsa -in accounts.key -pubout -out accounts.pub 2>/dev/null
  certificate apiserver /CN=kube-apiserver "DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,IP:127.0.0.1,IP:$(address n1),IP:10.96.0.1"
  who admin /O=system:masters/CN=admin
  who controllers /CN=system:kube-controller-manager
  who scheduler /CN=system:kube-scheduler
  who proxy /CN=system:kube-proxy
  for node in "${nodes[@]}"; do
    who "kubelet-$node" "/O=system:nodes/CN=system:node:$node" "DNS:$node,IP:$(address "$node")"
  done
}

networks() {
  local node other
  for node in "${nodes[@]}"; do
    ip netns add "$id-$node"
    ip -n "$id-$node" link set lo up
  done
  ip -n "$id-n1" link add node0 type veth peer name node0 netns "$id-n2"
  for node in "${nodes[@]}"; do
    other=n$((3 - ${node#n}))
    ip -n "$id-$node" addr add "$(address "$node")/24" dev node0
    ip -n "$id-$node" link set node0 up
    # Without a default route the addresses of Services would be unreachable before they are translated.
    ip -n "$id-$node" route add default via "$(address "$other")"
    ip -n "$id-$node" route add "$(pods "$other")" via "$(address "$other")"
    inside "$node" sysctl -qw net.ipv4.ip_forward=1
  done
}

control_plane() {
  cd "$run_dir/pki"
  daemon n1 etcd etcd --data-dir "$run_dir/etcd" --unsafe-no-fsync \
    --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 --listen-peer-urls http://127.0.0.1:2380
  daemon n1 apiserver "$hyperkube" kube-apiserver --etcd-servers=http://127.0.0.1:2379 \
    --bind-address=0.0.0.0 --secure-port=6443 --advertise-address="$(address n1)" --service-cluster-ip-range=10.96.0.0/16 \
    --tls-cert-file=apiserver.crt --tls-private-key-file=apiserver.key --client-ca-file=ca.crt \
    --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --allow-privileged=true \
    --service-account-issuer=https://kubernetes.default.svc --service-account-signing-key-file=accounts.key --service-account-key-file=accounts.pub \
    --kubelet-client-certificate=admin.crt --kubelet-client-key=admin.key --kubelet-preferred-address-types=InternalIP
  await 120 apiserver kubectl get --raw /readyz
  daemon n1 controllers "$hyperkube" kube-controller-manager --kubeconfig=controllers.conf \
    --authentication-kubeconfig=controllers.conf --authorization-kubeconfig=controllers.conf --bind-address=127.0.0.1 \
    --service-account-private-key-file=accounts.key --root-ca-file=ca.crt --use-service-account-credentials=true --leader-elect=false \
    --cluster-signing-cert-file=ca.crt --cluster-signing-key-file=ca.key
  daemon n1 scheduler "$hyperkube" kube-scheduler --kubeconfig=scheduler.conf \
    --authentication-kubeconfig=scheduler.conf --authorization-kubeconfig=scheduler.conf --bind-address=127.0.0.1 --leader-elect=false
  daemon n1 dns "$hyperkube" dns --kubeconfig=admin.conf --listen="$(address n1):53"
  await 60 controllers kubectl get serviceaccount default
}

containerd_socket() { printf '%s/%s/containerd.sock\n' "$run_dir" "$1"; }
images() { ctr --address "$(containerd_socket "$1")" --namespace k8s.io "${@:2}"; }

# cgroup_roots: where a node's pods are accounted, in every hierarchy.
cgroup_roots() {
  if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    printf '/sys/fs/cgroup/%s-%s\n' "$id" "$1"
  else
    printf '%s\n' /sys/fs/cgroup/*/ | sed "s#\$#$id-$1#"
  fi
}

node() {
  local node=$1 dir=$run_dir/$1
  mkdir -p "$dir/cni"
  cat >"$dir/cni/10-pods.conflist" <<J
{"cniVersion": "0.4.0", "name": "pods", "plugins": [
  {"type": "bridge", "bridge": "pods0", "isGateway": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "$(pods "$node")"}]], "routes": [{"dst": "0.0.0.0/0"}], "dataDir": "$dir/ipam"}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
J
  # restrict_oom_score_adj: a container's root may not make a process less likely to be killed.
  cat >"$dir/containerd.toml" <<T
version = 2
root = "$dir/containerd"
state = "$dir/containerd-state"
[grpc]
  address = "$(containerd_socket "$node")"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "$pause"
  disable_tcp_service = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$dir/cni"
T
  daemon "$node" "containerd-$node" containerd --config "$dir/containerd.toml"
  await 30 "containerd-$node" images "$node" version

  cat >"$dir/kubelet.yaml" <<Y
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
cgroupDriver: cgroupfs
cgroupRoot: /$id-$node
failCgroupV1: false
failSwapOn: false
containerRuntimeEndpoint: unix://$(containerd_socket "$node")
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $run_dir/pki/ca.crt}}
authorization: {mode: Webhook}
tlsCertFile: $run_dir/pki/kubelet-$node.crt
tlsPrivateKeyFile: $run_dir/pki/kubelet-$node.key
clusterDomain: cluster.local
clusterDNS: [$(address n1)]
resolvConf: $dir/resolv.conf
healthzBindAddress: 127.0.0.1
# The disk belongs to everybody on this machine: a node must not think it is its own.
evictionHard: {memory.available: 100Mi, nodefs.available: "1%", imagefs.available: "1%", nodefs.inodesFree: "1%"}
imageGCHighThresholdPercent: 100
volumePluginDir: $dir/plugins
podLogsDir: $dir/logs
nodeStatusUpdateFrequency: 5s
syncFrequency: 10s
Y
  : >"$dir/resolv.conf"
  cgroup_roots "$node" | xargs mkdir -p
  daemon "$node" "kubelet-$node" "$hyperkube" kubelet --config="$dir/kubelet.yaml" --kubeconfig="$run_dir/pki/kubelet-$node.conf" \
    --root-dir="$dir/kubelet" --hostname-override="$node" --node-ip="$(address "$node")"
  cat >"$dir/proxy.yaml" <<Y
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
clusterCIDR: 10.244.0.0/16
hostnameOverride: $node
clientConnection: {kubeconfig: $run_dir/pki/proxy.conf}
metricsBindAddress: 127.0.0.1:10249
conntrack: {maxPerCore: 0} # the machine's limits are left alone
Y
  daemon "$node" "proxy-$node" "$hyperkube" kube-proxy --config="$dir/proxy.yaml"
}

# volumes: what a cluster of somebody else's has as its default storage class. Directories of the
# first node, made beforehand.
volumes() {
  local number
  kubectl apply -f - >/dev/null <<Y
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: local, annotations: {storageclass.kubernetes.io/is-default-class: "true"}}
provisioner: kubernetes.io/no-provisioner
volumeBindingMode: WaitForFirstConsumer
Y
  for number in 1 2 3 4; do
    mkdir -p "$run_dir/volumes/$number"
    kubectl apply -f - >/dev/null <<Y
apiVersion: v1
kind: PersistentVolume
metadata: {name: local-$number}
spec:
  capacity: {storage: 10Gi}
  accessModes: [ReadWriteOnce]
  storageClassName: local
  persistentVolumeReclaimPolicy: Retain
  local: {path: $run_dir/volumes/$number}
  nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [n1]}]}]}}
Y
  done
}

remember() {
  local variable
  for variable in "${kubelet_sets[@]}"; do
    mkdir -p "$run_dir/sysctl/${variable%/*}"
    cat "/proc/sys/$variable" >"$run_dir/sysctl/$variable" 2>/dev/null || true # not every kernel has all of them
  done
}

restore() {
  local variable
  for variable in "${kubelet_sets[@]}"; do
    if [ -s "$run_dir/sysctl/$variable" ]; then cat "$run_dir/sysctl/$variable" >"/proc/sys/$variable" || true; fi
  done
}

node_ready() { kubectl wait --for=condition=Ready --timeout=1s "node/$1"; }

up() {
  local node
  [ -x "$hyperkube" ] || die "run $0 build first"
  [ ! -e "$run_dir" ] || down
  trap '[ $? = 0 ] || down' EXIT
  mkdir -p "$run_dir"
  remember
  networks
  certificates
  control_plane
  for node in "${nodes[@]}"; do node "$node"; done
  load "$pause"
  for node in "${nodes[@]}"; do await 120 "kubelet-$node" node_ready "$node"; done
  volumes
  say "Kubernetes $version is up, with ${#nodes[@]} nodes: $0 kubectl ..."
}

load() {
  local node
  docker save "$@" -o "$run_dir/images.tar"
  for node in "${nodes[@]}"; do images "$node" images import "$run_dir/images.tar" >/dev/null; done
  rm "$run_dir/images.tar"
}

# end NAME...: processes that "up" started, if their numbers still belong to them.
end() {
  local name pid pids=() tries
  for name in "$@"; do
    pid=$(cat "$run_dir/$name.pid" 2>/dev/null) || continue
    if grep -qF -e "$run_dir" -e "$hyperkube" "/proc/$pid/cmdline" 2>/dev/null; then pids+=("$pid"); fi
  done
  [ ${#pids[@]} -gt 0 ] || return 0
  kill "${pids[@]}" 2>/dev/null || true
  for ((tries = 0; tries < 30; tries++)); do
    kill -0 "${pids[@]}" 2>/dev/null || return 0 # all are gone
    sleep 0.1
  done
  kill -9 "${pids[@]}" 2>/dev/null || true # of a cluster that is thrown away nothing has to be saved
}

down() {
  local node item
  [ -e "$run_dir" ] || return 0
  cd /
  end kubelet-n1 kubelet-n2 proxy-n1 proxy-n2 # first, or they would start again what is ended now
  restore
  for node in "${nodes[@]}"; do
    images "$node" tasks list -q 2>/dev/null | xargs -r -n 1 -P 8 ctr --address "$(containerd_socket "$node")" --namespace k8s.io tasks kill -s KILL 2>/dev/null || true
  done
  sleep 0.5
  for node in "${nodes[@]}"; do
    for item in $(images "$node" containers list -q 2>/dev/null); do
      # Nobody else takes a pod's network down any more.
      images "$node" containers info "$item" | sed -nE 's#.*"/var/run/netns/(cni-[a-z0-9-]+)".*#\1#p' | xargs -r -n 1 ip netns delete 2>/dev/null || true
      images "$node" tasks delete -f "$item" >/dev/null 2>&1 || true
      images "$node" containers delete "$item" >/dev/null 2>&1 || true
    done
  done
  end containerd-n1 containerd-n2 dns scheduler controllers apiserver etcd
  awk -v dir="$run_dir/" 'index($2, dir) == 1 { print $2 }' /proc/mounts | sort -r | while read -r item; do umount -l "$item"; done
  for node in "${nodes[@]}"; do
    ip netns delete "$id-$node" 2>/dev/null || true
    cgroup_roots "$node" | while read -r item; do
      [ ! -d "$item" ] || find "$item" -depth -type d -exec rmdir {} + 2>/dev/null || true
    done
  done
  rm -rf --one-file-system "$run_dir" # never into a mount that is still there
}

wire() { # -I or -D
  local node
  for node in "${nodes[@]}"; do inside "$node" iptables -w -t mangle "$1" PREROUTING -i node0 -j DROP; done
}

case ${1:-} in
packages | build | up | down) "$1" ;;
load | kubectl) "$@" ;;
unplug) wire -I ;;
plug) wire -D ;;
kill) images "$2" tasks kill --signal "${4:-SIGKILL}" "${3#containerd://}" ;;
*) die "usage: kubernetes.sh packages | build | up | load IMAGE... | kubectl ... | kill NODE CONTAINER [SIGNAL] | unplug | plug | down" ;;
esac
