"""Exports and imports of namespaces and of other products' files."""
