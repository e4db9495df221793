"""Finding memories: words, queries, candidates from Redis, and scores of our own."""
