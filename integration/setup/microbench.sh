#!/usr/bin/env bash
# microbench.sh run       the micro-benchmarks, results into .cache/bench/new.txt
# microbench.sh compare   the same, in turns with those of another commit (BASE=main), and benchstat's table of both
# microbench.sh allocations
#                         holds the allocations of each against allocations.txt beside this file; UPDATE=1 writes it
#
# COUNT=10 and BENCH=REGEXP choose how often and which. Times depend on the
# machine and are compared by nobody but benchstat; allocations do not.
set -euo pipefail
# shellcheck source=integration/setup/lib.sh
. "$(dirname "$0")/lib.sh"

packages=(ingest mapping store)
bench=${BENCH:-'^Benchmark(DecodePublish|Receive|ReceiveAndMap|Match|Map|MapEach|EncodeBatch|LedgerLookup)$'}
list=$setup_dir/allocations.txt
results=$cache_dir/bench

# build TREE DIR: the test programs of a source tree.
build() {
  local package
  mkdir -p "$2"
  for package in "${packages[@]}"; do
    (cd "$1" && go test -c -o "$2/$package.test" "./$package")
  done
}

# round TREE DIR TIME: one run of all of them, in the directories of their packages.
round() {
  local package
  for package in "${packages[@]}"; do
    (cd "$1/$package" && "$2/$package.test" -test.run '^$' -test.bench "$bench" -test.benchmem -test.benchtime "$3" -test.timeout 10m)
  done
}

case ${1:-} in
run)
  build "$repo_dir" "$results/new"
  for _ in $(seq "${COUNT:-6}"); do round "$repo_dir" "$results/new" 200ms; done | tee "$results/new.txt"
  ;;
compare)
  base=$(git -C "$repo_dir" rev-parse --verify "${BASE:-main}^{commit}")
  tree=$results/tree
  git -C "$repo_dir" worktree remove --force "$tree" 2>/dev/null || rm -rf "$tree"
  git -C "$repo_dir" worktree prune
  trap 'git -C "$repo_dir" worktree remove --force "$tree"' EXIT
  git -C "$repo_dir" worktree add --quiet --detach "$tree" "$base"
  build "$tree" "$results/old"
  build "$repo_dir" "$results/new"
  : >"$results/old.txt" >"$results/new.txt"
  for _ in $(seq "${COUNT:-10}"); do
    round "$tree" "$results/old" 100ms >>"$results/old.txt"
    round "$repo_dir" "$results/new" 100ms >>"$results/new.txt"
  done
  "${BENCHSTAT:-benchstat}" "${BASE:-main}=$results/old.txt" "this tree=$results/new.txt"
  ;;
allocations)
  build "$repo_dir" "$results/new"
  # A fixed number of times: what is allocated once disappears in the average, which is rounded down. And
  # without the garbage collector, which empties the pools at times of its own.
  GOGC=off round "$repo_dir" "$results/new" 1000x >"$results/allocations.txt"
  awk '
    /^pkg:/ { package = $2; sub(/.*\//, "", package) }
    /^Benchmark/ { sub(/-[0-9]+$/, "", $1); for (i = 3; i <= NF; i++) if ($i == "allocs/op") print package, $1, $(i - 1) }
  ' "$results/allocations.txt" | sort >"$results/found.txt"
  if [ -n "${UPDATE:-}" ]; then
    {
      echo "# Allocations per operation of each micro-benchmark: package, benchmark, allocations."
      echo "# Held by make test. To change it on purpose: make test-allocations UPDATE=1"
      cat "$results/found.txt"
    } >"$list"
    say "wrote $(wc -l <"$results/found.txt") benchmarks to ${list#"$repo_dir"/}"
    exit 0
  fi
  awk '
    /^#/ { next }
    NR == FNR { allowed[$1 " " $2] = $3; next }
    {
      name = $1 " " $2; seen[name] = 1
      if (!(name in allowed)) { bad = 1; printf "allocations: %s is not listed: it has %d\n", name, $3 }
      else if ($3 > allowed[name]) { bad = 1; printf "allocations: %s has %d per operation, %d are allowed\n", name, $3, allowed[name] }
      else if ($3 < allowed[name]) printf "allocations: %s has %d per operation, %d are allowed: better, and worth holding\n", name, $3, allowed[name]
    }
    END {
      for (name in allowed) if (!(name in seen)) { bad = 1; printf "allocations: %s is listed, but was not run\n", name }
      if (bad) print "allocations: if this is meant: make test-allocations UPDATE=1, and say why in the commit message"
      else print "allocations: no micro-benchmark allocates more than it may"
      exit bad
    }
  ' "$list" "$results/found.txt"
  ;;
*)
  die "usage: microbench.sh run|compare|allocations"
  ;;
esac
