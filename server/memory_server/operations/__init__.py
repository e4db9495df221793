"""What operators run: statistics, health checks, key rotation, reindexing and sweeps."""
