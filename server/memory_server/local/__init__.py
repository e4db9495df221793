"""The embedded default: one real Redis and one sidecar per user, shared by all server processes."""

DEFAULT_MODEL = "all-MiniLM-L6-v2"

THREE_WAYS_OUT = (
    "either start Docker Compose (`docker compose up`), "
    "or set REDIS_URL to a Redis 8.2 or newer with the Query Engine, "
    "or put on PATH a redis-server 8.2 or newer with its redisearch.so"
)
