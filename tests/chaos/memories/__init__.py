"""The chaos run of memories: load, faults, what was kept, and the rules by which it is judged."""
