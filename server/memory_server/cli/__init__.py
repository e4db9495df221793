"""`redis-memory`, the command line. One module per group of commands."""

from memory_server.cli.root import app, main

__all__ = ["app", "main"]
