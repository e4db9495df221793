"""The embedded default: one real Redis and one sidecar per user, shared by all server processes."""

DEFAULT_MODEL = "all-MiniLM-L6-v2"
MASTER_KEYS = "MEMORY_MASTER_KEY"
"""How the variables of master keys begin, which neither Redis nor a sidecar is given."""
TRANSPORT_VARIABLE = "MEMORY_TRANSPORT_KEY"

THREE_WAYS_OUT = (
    "either start Docker Compose (`docker compose up`), "
    "or set REDIS_URL to a Redis 8.2 or newer with the Query Engine, "
    "or put on PATH a redis-server 8.2 or newer with its redisearch.so"
)
