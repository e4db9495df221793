#!/bin/sh
# Makes what docker-compose.yml reads from ./secrets, once; what is there stays. The folder is for its owner alone, the
# files are not: the containers read them as users of their own.
set -eu
folder=${1:-secrets}
redis_memory=${REDIS_MEMORY:-docker compose run --rm --no-deps -T server}

mkdir -p "$folder"
chmod 700 "$folder"

keep() {  # keep NAME COMMAND…: write what a command prints into a file, unless there is one
    name=$1
    shift
    [ -s "$folder/$name" ] || "$@" > "$folder/.new"
    [ -s "$folder/$name" ] || mv "$folder/.new" "$folder/$name"
    chmod 444 "$folder/$name"
}

for name in redis_server redis_sidecar redis_migrate metrics_token grafana_admin; do
    keep "$name" openssl rand -hex 32
done
keep master_key openssl rand -base64 32
# Of the master key: all that a sidecar needs of it.
keep transport_key $redis_memory keys transport
