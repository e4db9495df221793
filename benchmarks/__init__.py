"""Measurements against peers and floors; run them by `make bench`."""
