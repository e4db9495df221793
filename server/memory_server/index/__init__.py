"""Queries on the search index and loading of the records they name."""
