"""Breaks copies of the source on purpose and runs the tests that should fail."""
