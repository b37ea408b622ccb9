#!/usr/bin/env bash
# Run packages of Complement against the image: complement/run.sh [PACKAGE…]   (default: ./tests/csapi)
#
#   COMPLEMENT_DIR         a checkout of matrix-org/complement (needed)
#   COMPLEMENT_BASE_IMAGE  default complement-minihs, as build.sh makes it
#   RUN, SKIP              regular expressions of test names, as `go test -run` and `-skip` take them
#   RESULTS                a directory for PACKAGE.json; default: one in the temporary directory
#   TIMEOUT                for one package; default 45m
#
# One package after the other: two at once would share container names and the authority's files.
# Tests that fail are a result and not an error here; complement/compare.py judges them.
set -uo pipefail

: "${COMPLEMENT_DIR:?a checkout of matrix-org/complement}"
results=${RESULTS:-${TMPDIR:-/tmp}/minihs-complement}
mkdir -p "$results"
results=$(cd "$results" && pwd)
export COMPLEMENT_BASE_IMAGE=${COMPLEMENT_BASE_IMAGE:-complement-minihs}
export COMPLEMENT_ENABLE_DIRTY_RUNS=1
TMPDIR=$(mktemp -d)
export TMPDIR # Complement keeps its authority there, under fixed names
trap 'rm -rf "$TMPDIR"' EXIT

cd "$COMPLEMENT_DIR" || exit
status=0
for package in "${@:-./tests/csapi}"; do
  file=$results/$(basename "$package").json
  go test -json -count=1 -p 1 -timeout "${TIMEOUT:-45m}" ${RUN:+-run "$RUN"} ${SKIP:+-skip "$SKIP"} \
    "$package" >"$file" 2>"$file.stderr"
  # 1: tests failed. Anything else, or no test at all: it did not run.
  if [[ $? -gt 1 ]] || ! grep -q '"Test":' "$file"; then
    cat "$file.stderr" >&2
    tail -n 20 "$file" >&2
    status=2
  fi
  echo "$file"
done
exit $status
