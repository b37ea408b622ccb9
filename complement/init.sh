#!/usr/bin/env bash
# Runs once while the image is built: the schema, so that a container starts with it in place.
set -euo pipefail

as_postgres() { setpriv --reuid=postgres --regid=postgres --init-groups "$@"; }
as_postgres /minihs/pgbin/pg_ctl -D /minihs/postgres -w -s start
as_postgres /minihs/pgbin/psql -h /minihs/socket -q -c 'CREATE DATABASE minihs'

# The name is not known yet (SERVER_NAME comes with the container), and the schema does not hold it.
cd /minihs/src
PATH=/minihs/venv/bin:$PATH \
MINIHS_SERVER_NAME=image.invalid \
MINIHS_DATABASE_URL='postgresql://postgres@/minihs?host=/minihs/socket' \
MINIHS_DATA_DIR=/minihs/data \
  python3 -m minihs migrate
python3 -m compileall -q /minihs/src
rm -rf /minihs/data

as_postgres /minihs/pgbin/pg_ctl -D /minihs/postgres -w -s -m fast stop
