"""The embedded Redis and sidecar of a user, shared by all server processes."""

DEFAULT_MODEL = "all-MiniLM-L6-v2"
TRANSPORT_VARIABLE = "MEMORY_TRANSPORT_KEY"

ALTERNATIVES = (
    "either start Docker Compose (`docker compose up`), "
    "or set REDIS_URL to a Redis 8.2 or newer with the Query Engine, "
    "or put on PATH a redis-server 8.2 or newer with its redisearch.so"
)
