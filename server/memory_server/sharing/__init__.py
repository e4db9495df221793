"""Grants and the context that agents share."""
