"""Agent names as people write them, and what they became."""

from __future__ import annotations

from memory_core.errors import InvalidArgument
from memory_core.records.names import canonical_name
from memory_server.contract.untrusted_text import quoted


class GivenNames:
    """Turns the agent names in the arguments of one call into canonical names, and collects those that it changed.

    It is the context of a validation. Without it, names stay as they are: a token names its agent exactly.
    """

    def __init__(self) -> None:
        self._became: dict[str, str] = {}

    def canonical(self, given: str) -> str:
        """Return the canonical name, or the given one if there is none: no agent has it."""
        try:
            name = canonical_name(given, "agent")
        except InvalidArgument:
            return given
        if name != given:
            self._became[given] = name
        return name

    def notes(self) -> list[str]:
        return [became("agent", given, name) for given, name in self._became.items()]


def became(what: str, given: str, name: str) -> str:
    """Say which name an agent or a namespace has."""
    return f"{what} {quoted(given)} is {name}"
