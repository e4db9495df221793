"""The checks of `redis-memory doctor`: each looks at one thing, changes nothing and says how to mend it."""
