#!/bin/sh
# Starts Redis with the users of users.acl and passwords from files. Arguments are appended to the Redis command line.
set -eu
config=${CONFIG:-/etc/redis-memory}
secrets=${SECRETS:-/run/secrets}
state=${STATE:-/run/redis-memory}

hash_of() {
    [ -s "$secrets/$1" ] || { echo "no password in $secrets/$1" >&2; exit 78; }
    tr -d '\r\n' < "$secrets/$1" | sha256sum | cut -c1-64
}

umask 077
server=$(hash_of redis_server)
sidecar=$(hash_of redis_sidecar)
migrate=$(hash_of redis_migrate)
view=$(hash_of redis_view)
sed -e "s/REPLACE_SERVER_SHA256/$server/" -e "s/REPLACE_SIDECAR_SHA256/$sidecar/" \
    -e "s/REPLACE_MIGRATE_SHA256/$migrate/" -e "s/REPLACE_VIEW_SHA256/$view/" "$config/users.acl" > "$state/users.acl"
exec "${REDIS_SERVER:-redis-server}" "$config/redis.conf" --aclfile "$state/users.acl" "$@"
