"""`python -m memory_server` is `redis-memory`."""

from memory_server.cli import main

main()
