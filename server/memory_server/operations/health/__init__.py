"""The checks of `redis-memory doctor`. Each looks at one thing, changes nothing and says how to fix it."""
