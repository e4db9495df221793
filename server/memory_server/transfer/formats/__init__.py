"""Readers of other products' files."""
