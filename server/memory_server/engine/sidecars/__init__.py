"""Requests to the sidecars: embeddings and bulk searches, and the cache of vectors."""
