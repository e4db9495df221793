#!/bin/sh
# Creates the secrets that docker-compose.yml reads from ./secrets. Existing files stay. Only the owner can enter the
# folder; the files are world-readable because the containers run as other users.
set -eu
umask 077
folder=${1:-secrets}
redis_memory=${REDIS_MEMORY:-docker compose run --rm --no-deps -T server}

refuse() {
    echo "make-secrets.sh: $1" >&2
    exit 78
}

mkdir -p "$folder"
[ ! -L "$folder" ] || refuse "$folder is a link"
# Another user who could write here may know or choose a secret.
loose=$(find "$folder" \( ! -user "$(id -u)" -o -type l -o -perm -020 -o -perm -002 \) -print)
[ -z "$loose" ] || refuse "other users own or may write, or it is a link: $loose"
chmod 700 "$folder"

keep() {  # keep NAME COMMAND…: write the command's output into the file, unless the file exists
    name=$1
    shift
    rm -f "$folder/.new"
    [ -s "$folder/$name" ] || "$@" > "$folder/.new"
    [ -s "$folder/$name" ] || mv "$folder/.new" "$folder/$name"
    chmod 444 "$folder/$name"
}

for name in redis_server redis_sidecar redis_migrate redis_view metrics_token grafana_admin; do
    keep "$name" openssl rand -hex 32
done
keep master_key openssl rand -base64 32
# Derived from the master key; sidecars get only this key.
keep transport_key $redis_memory keys transport
