"""The commands of `redis-memory`."""
