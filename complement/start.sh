#!/usr/bin/env bash
# PID 1 of the container: keys, PostgreSQL, minihs; and an orderly end on SIGTERM.
#
# It is run many times on the same file system (`docker stop` and `start`, committed blueprints),
# so whatever must last is made only where it is absent, and the certificate is signed every time:
# each test process brings a new authority.
set -euo pipefail

: "${SERVER_NAME:?Complement gives the name of the homeserver}"
ca=/complement/ca
export PATH=/minihs/venv/bin:$PATH PYTHONPATH=/minihs/src PYTHONUNBUFFERED=1 LANG=C.UTF-8
mkdir -p /minihs/data /minihs/tls

# --- the certificate of 8448, signed by Complement's authority ----------------------------------
if [[ ! -e $ca/ca.key ]]; then # run by hand, without Complement
  mkdir -p $ca
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 \
    -subj /CN=by-hand -keyout $ca/ca.key -out $ca/ca.crt 2>/dev/null
fi
openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes \
  -subj "/CN=$SERVER_NAME" -keyout /minihs/tls/tls.key -out /minihs/tls/tls.csr 2>/dev/null
openssl x509 -req -in /minihs/tls/tls.csr -CA $ca/ca.crt -CAkey $ca/ca.key \
  -set_serial "0x$(openssl rand -hex 8)" -days 30 -out /minihs/tls/tls.crt \
  -extfile <(printf 'subjectAltName=DNS:%s' "$SERVER_NAME") 2>/dev/null

# --- settings; what the container is given with `docker run -e`, or by Complement's
# COMPLEMENT_SHARE_ENV_PREFIX, wins -----------------------------------------------------------------
setting() { export "$1=${!1-$2}"; }
setting MINIHS_SERVER_NAME "$SERVER_NAME"
setting MINIHS_DATABASE_URL 'postgresql://postgres@/minihs?host=/minihs/socket'
setting MINIHS_DATA_DIR /minihs/data
setting MINIHS_SIGNING_KEY_PATH /minihs/data/signing.key
setting MINIHS_LISTEN 0.0.0.0:8008
setting MINIHS_FEDERATION_LISTEN 0.0.0.0:8448
setting MINIHS_TLS_CERT /minihs/tls/tls.crt
setting MINIHS_TLS_KEY /minihs/tls/tls.key
setting MINIHS_FEDERATION_CA_FILE $ca/ca.crt
setting MINIHS_FEDERATION_ALLOW_PRIVATE_ADDRESSES true
# A homeserver that was stopped for a test must be asked again soon.
setting MINIHS_FEDERATION_MAX_BACKOFF_SECONDS 5
setting MINIHS_REGISTRATION open
setting MINIHS_REGISTRATION_SHARED_SECRET complement
setting MINIHS_RATE_LIMITS off
# Complement presumes that the creator of a room stands in its power levels: before version 12.
setting MINIHS_DEFAULT_ROOM_VERSION 11
setting MINIHS_DELAYED_EVENTS_UNAUTHENTICATED_MANAGEMENT true
# Every test registers users: hashes as cheap as the library allows.
setting MINIHS_PASSWORD_HASH_MEMORY_KIB 8
setting MINIHS_PASSWORD_HASH_ITERATIONS 1
# A failed test prints the whole log.
setting MINIHS_LOG_LEVEL warning
registrations=$(shopt -s nullglob; IFS=,; files=(/complement/appservice/*.yaml); printf %s "${files[*]-}")
setting MINIHS_APPSERVICE_FILES "$registrations"

# --- start ---------------------------------------------------------------------------------------
rm -f /minihs/postgres/postmaster.pid # of a container that was killed
setpriv --reuid=postgres --regid=postgres --init-groups \
  /minihs/pgbin/postgres -D /minihs/postgres &
postgres=$!
until /minihs/pgbin/pg_isready -q -h /minihs/socket -U postgres; do sleep 0.02; done
cd /minihs/src
python3 -m minihs run &
server=$!

# --- and stop: minihs first, so that it can write what it owes -----------------------------------
stop() {
  trap - TERM INT
  kill -TERM $server 2>/dev/null && wait $server || true
  kill -INT $postgres 2>/dev/null && wait $postgres || true
  exit "$1"
}
trap 'stop 0' TERM INT
wait -n || true
echo "start.sh: minihs or PostgreSQL has ended by itself" >&2
stop 1
