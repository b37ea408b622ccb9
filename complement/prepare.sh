#!/usr/bin/env bash
# Runs once while the image is built: PostgreSQL, the libraries, an empty database cluster.
set -euo pipefail

# --- programs: a debootstrap base has them already -------------------------------------------
if ! compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || ! command -v openssl >/dev/null; then
  apt-get update
  DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends postgresql openssl
  rm -rf /var/lib/apt/lists/*
fi

# --- libraries: from the wheels that build.sh brought, so no network is needed ------------------
python3 -m venv /minihs/venv
/minihs/venv/bin/python3 -m pip install --quiet --no-index --no-cache-dir --disable-pip-version-check \
  --find-links /minihs/build/wheels -r /minihs/build/requirements.txt
rm -rf /minihs/build/wheels

# --- a cluster that lives as long as its container ---------------------------------------------
bin=$(dirname "$(compgen -G '/usr/lib/postgresql/*/bin/initdb' | sort -V | tail -1)")
install -d -o postgres -g postgres -m 0700 /minihs/postgres
install -d -o postgres -g postgres -m 0755 /minihs/socket
as_postgres() { setpriv --reuid=postgres --regid=postgres --init-groups "$@"; }
as_postgres "$bin/initdb" -D /minihs/postgres -A trust -U postgres --locale=C --encoding=UTF-8 >/dev/null
cat >>/minihs/postgres/postgresql.conf <<'CONF'
listen_addresses = ''
unix_socket_directories = '/minihs/socket'
max_connections = 60
# Small and quick: a container is thrown away, so nothing in it needs to survive a crash.
fsync = off
synchronous_commit = off
full_page_writes = off
wal_level = minimal
max_wal_senders = 0
min_wal_size = 32MB
max_wal_size = 256MB
shared_buffers = 64MB
# Tables stay tiny: neither pays here.
autovacuum = off
jit = off
log_min_messages = fatal
CONF
ln -s "$bin" /minihs/pgbin
