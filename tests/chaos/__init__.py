"""Breaks a running team of agents on purpose, records every call and checks that no rule was broken."""
