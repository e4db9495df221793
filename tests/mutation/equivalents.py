"""Mutants that no test can see, because the product behaves the same with them; each with the reason."""

from __future__ import annotations

EQUIVALENT: dict[tuple[str, str], str] = {}
