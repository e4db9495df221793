"""Storing, reading, changing and deleting memories."""
