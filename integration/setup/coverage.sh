#!/usr/bin/env bash
# coverage.sh DIR: merges the counters that test runs left in the folders below
# DIR (unit tests, and the real binary under the scenarios), prints the coverage
# of every package, and fails when one has less than is asked of it.
set -euo pipefail
cd "$(dirname "$0")/../.."

dir=${1:?usage: coverage.sh DIR}
folders=
for folder in "$dir"/*/; do
  [ -z "$(ls -A "$folder" 2>/dev/null)" ] || folders+=${folders:+,}${folder%/}
done
if [ -z "$folders" ]; then
  echo "coverage: no counters in $dir: run the tests first" >&2
  exit 1
fi
go tool covdata textfmt -i="$folders" -o=coverage.out

# A block may be listed once per binary that holds it: it is covered when it ran
# in any of them.
awk -v module="$(go list -m)" '
  function asked(package) {
    if (package ~ /^(mapping|store)$/) return 85
    if (package ~ /^integration\//) return 0 # test equipment, listed for information
    return 70
  }
  BEGIN { FS = "[ ]" }
  /^mode:/ { next }
  {
    statements[$1] = $2
    if ($3 > 0) ran[$1] = 1
  }
  END {
    for (block in statements) {
      package = block
      sub(/\/[^\/]*$/, "", package)
      sub("^" module "/", "", package)
      total[package] += statements[block]
      if (block in ran) hit[package] += statements[block]
    }
    # What must be there: a package without any test has no counters at all.
    count = split("mapping store ingest health migrations cmd/bridge", needed, " ")
    for (i = 1; i <= count; i++) if (!(needed[i] in total)) { total[needed[i]] = 0 }
    for (package in total) {
      percent = total[package] ? 100 * hit[package] / total[package] : 0
      verdict = percent > asked(package) ? "" : sprintf("  too little: more than %d %% is asked", asked(package))
      if (asked(package) == 0) verdict = ""
      if (verdict != "") bad = 1
      printf "coverage: %-22s %5.1f %%%s\n", package, percent, verdict | "sort"
    }
    close("sort")
    exit bad
  }' coverage.out
