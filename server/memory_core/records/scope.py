"""Who may read what: the tokens a record carries and the tokens a principal holds.

A record is readable when the two sets meet. The same sets make the query's permission clause and the
re-check on the loaded record.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from memory_core.records.keys import digest
from memory_core.records.memory import MemoryType, Record, Visibility

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
class Part:
    """Tokens that a grant gives from one source, and since when (epoch seconds)."""

    tokens: tuple[str, ...]
    at: float


@dataclass(frozen=True)
class Grant:
    """What one grant in force adds: the grantor's own memories, and others' that it passes on."""

    id: str
    grantor: str
    may_write: bool
    parts: tuple[Part, ...]

    @cached_property
    def tokens(self) -> frozenset[str]:
        """All tokens that it gives."""
        return frozenset(token for part in self.parts for token in part.tokens)


@dataclass(frozen=True)
class Principal:
    """Who a request acts as, resolved from the connection and never from an argument.

    `owner` is the id that new memories get, None until the agent first writes; `owners` are all ids whose
    memories are its own; `grants` are those of others in force; `hidden` are the tokens of owner ids that were deleted;
    `quarantined` are agents, and since when (epoch seconds) nobody but they themselves is shown what they write.
    """

    namespace: str
    agent: str
    owner: str | None = None
    owners: tuple[str, ...] = ()
    grants: tuple[Grant, ...] = ()
    hidden: frozenset[str] = frozenset()
    quarantined: tuple[tuple[str, float], ...] = ()
    admin: bool = False

    @cached_property
    def granted(self) -> tuple[str, ...]:
        """The scope tokens that grants add."""
        return tuple(dict.fromkeys(token for grant in self.grants for part in grant.parts for token in part.tokens))

    @cached_property
    def tokens(self) -> tuple[str, ...]:
        """All scope tokens that the principal may read by."""
        return (PUBLIC, *map(owner_token, self.owners), *self.granted)

    @cached_property
    def _held(self) -> frozenset[str]:
        return frozenset(self.tokens)

    def may_read(self, scope: frozenset[str]) -> bool:
        """Whether a record with these tokens is readable."""
        return not scope.isdisjoint(self._held) and scope.isdisjoint(self.hidden)

    def may_see(self, record: Record) -> bool:
        """Whether a record is readable and its writer not under quarantine."""
        since = self.mistrusted.get(record.writer)
        return self.may_read(record.scope) and (since is None or record.updated_at < since)

    @cached_property
    def mistrusted(self) -> dict[str, float]:
        """The other agents under quarantine, and since when."""
        return {name: since for name, since in self.quarantined if name != self.agent}

    def owns(self, owner: str) -> bool:
        """Whether a record of this owner id is the principal's own."""
        return owner in self.owners

    def grantors_of(self, record: Record) -> list[str]:
        """Name the agents whose grants show a record."""
        return sorted({grant.grantor for grant in self.grants if not record.scope.isdisjoint(grant.tokens)})

    def grants_to_write(self, scope: frozenset[str]) -> tuple[Grant, ...]:
        """Give the grants under which a record with these tokens may be changed."""
        return tuple(grant for grant in self.grants if grant.may_write and not scope.isdisjoint(grant.tokens))
