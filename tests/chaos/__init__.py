"""Breaks a running team of agents on purpose, records every call, and proves that nothing went wrong."""
