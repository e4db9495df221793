"""Access to Redis: connections, Functions, the index, streams and the clock."""
