"""Runs the sidecar: `python -m memory_embedder`."""

from memory_embedder.cli import main

if __name__ == "__main__":
    main()
