"""`redis-memory`: everything that is done from a shell, a file for each group of commands."""

from memory_server.cli.root import app, main

__all__ = ["app", "main"]
