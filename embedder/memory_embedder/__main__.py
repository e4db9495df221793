"""Lets `python -m memory_embedder` run the sidecar."""

from memory_embedder.cli import main

if __name__ == "__main__":
    main()
