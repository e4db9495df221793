"""Who may read what: the tokens a record carries and the tokens a principal holds.

A record is readable when the two sets meet. The same sets make the query's permission clause and the
re-check on the loaded record.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from memory_core.keys import digest
from memory_core.records import MemoryType, Visibility

PUBLIC = "pub"


def owner_token(owner: str) -> str:
    """Everything of an owner."""
    return f"o:{owner}"


def context_token(owner: str, context: str) -> str:
    """An owner's memories of one context."""
    return f"c:{owner}:{digest(context)}"


def tag_token(owner: str, tag: str) -> str:
    """An owner's memories with one tag."""
    return f"t:{owner}:{digest(tag)}"


def type_token(owner: str, memory_type: MemoryType) -> str:
    """An owner's memories of one type."""
    return f"y:{owner}:{memory_type}"


def id_token(memory_id: str) -> str:
    """One memory."""
    return f"i:{memory_id}"


def record_tokens(
    *,
    memory_id: str,
    owner: str,
    memory_type: MemoryType,
    visibility: Visibility,
    tags: Iterable[str],
    context: str | None,
    sensitive: bool = False,
) -> frozenset[str]:
    """Give the tokens of a record; a sensitive one can be granted by its id alone."""
    tokens = {owner_token(owner), id_token(memory_id)}
    if sensitive:
        return frozenset(tokens)
    tokens.add(type_token(owner, memory_type))
    tokens.update(tag_token(owner, tag) for tag in tags)
    if context:
        tokens.add(context_token(owner, context))
    if visibility is Visibility.PUBLIC:
        tokens.add(PUBLIC)
    return frozenset(tokens)


@dataclass(frozen=True, slots=True)
class Principal:
    """Who a request acts as, resolved from the connection and never from an argument.

    `owner` is the id that new memories get, None until the agent first writes; `owners` are all ids whose
    memories are its own; `granted` are tokens that others' grants add.
    """

    namespace: str
    agent: str
    owner: str | None = None
    owners: tuple[str, ...] = ()
    granted: tuple[str, ...] = ()
    admin: bool = False

    @property
    def tokens(self) -> tuple[str, ...]:
        """All scope tokens that the principal may read by."""
        return (PUBLIC, *map(owner_token, self.owners), *self.granted)

    def may_read(self, scope: frozenset[str]) -> bool:
        """Whether a record with these tokens is readable."""
        return not scope.isdisjoint(self.tokens)

    def owns(self, owner: str) -> bool:
        """Whether a record of this owner id is the principal's own."""
        return owner in self.owners
