"""Shared by tests: the real stack, models of the contract, builders and helpers."""
