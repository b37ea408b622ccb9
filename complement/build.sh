#!/usr/bin/env bash
# Build the image for Complement from this checkout: complement/build.sh [TAG]   (default: complement-minihs)
#
#   BASE_IMAGE  default python:3.11-slim-bookworm; complement-base:bookworm for one made by hand (README.md)
#   WHEELS      where wheels are kept between builds; default: a directory in the user's cache
#   PYTHON      whose pip fetches the wheels; default: .venv/bin/python, else python3
#
# Wheels are fetched here, not in the image: a build then needs no network unless the base image
# lacks PostgreSQL, and a second build none at all.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
tag=${1:-complement-minihs}
python=${PYTHON:-$root/.venv/bin/python}
[[ -x $python ]] || python=python3
cache=${WHEELS:-${XDG_CACHE_HOME:-$HOME/.cache}/minihs/complement-wheels}

context=$(mktemp -d)
trap 'rm -rf "$context"' EXIT

# --- the exact libraries of requirements.lock, no more of them than a server needs ----------------
"$python" - "$root" >"$context/wanted.txt" <<'PY'
import pathlib, sys, tomllib
project = tomllib.loads(pathlib.Path(sys.argv[1], "pyproject.toml").read_text())["project"]
print("\n".join(project["dependencies"]))
PY
wheels=$cache/$(cat "$context/wanted.txt" "$root/requirements.lock" | sha256sum | cut -c1-16)
if [[ ! -e $wheels/requirements.txt ]]; then
  rm -rf "$wheels" && mkdir -p "$wheels/wheels"
  "$python" -m pip download --quiet --disable-pip-version-check --only-binary=:all: \
    --python-version 3.11 -d "$wheels/wheels" -r "$context/wanted.txt" -c "$root/requirements.lock"
  cp "$context/wanted.txt" "$wheels/requirements.txt"
fi

# --- the context: only what the image is made of ---------------------------------------------------
cp -r "$wheels/wheels" "$wheels/requirements.txt" "$context/"
cp "$root"/complement/{Dockerfile,prepare.sh,init.sh,start.sh} "$context/"
mkdir "$context/src"
cp -r "$root/minihs" "$root/migrations" "$root/alembic.ini" "$context/src/"
find "$context/src" -name __pycache__ -prune -exec rm -rf {} +

arguments=()
[[ -n ${BASE_IMAGE-} ]] && arguments+=(--build-arg "BASE_IMAGE=$BASE_IMAGE")
docker build --quiet "${arguments[@]}" -t "$tag" "$context"
