"""Permissions: a record is readable if its scope tokens and those of the principal intersect.

The same tokens make the permission clause of queries and the check on loaded records.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property

from memory_core.records.keys import digest
from memory_core.records.memory import MemoryType, Record, Visibility

PUBLIC = "pub"
NOBODY = "-"  # an owner id or token that no record carries: a filter on it matches nothing


def owner_token(owner: str) -> str:
    """The token of all memories of an owner. The tokens below are of those of one context, tag or type."""
    return f"o:{owner}"


def context_token(owner: str, context: str) -> str:
    return f"c:{owner}:{digest(context)}"


def tag_token(owner: str, tag: str) -> str:
    return f"t:{owner}:{digest(tag)}"


def type_token(owner: str, memory_type: MemoryType) -> str:
    return f"y:{owner}:{memory_type}"


def id_token(memory_id: str) -> str:
    return f"i:{memory_id}"


def reader_token(owner: str) -> str:
    """The token of memories that were written for the holder of an owner id."""
    return f"r:{owner}"


def readers_of(scope: Iterable[str]) -> tuple[str, ...]:
    """Return the owner ids whose holders a record was written for."""
    return tuple(sorted(token[2:] for token in scope if token.startswith("r:")))


def record_tokens(
    *,
    memory_id: str,
    owner: str,
    memory_type: MemoryType,
    visibility: Visibility,
    tags: Iterable[str],
    context: str | None,
    sensitive: bool = False,
    readers: Iterable[str] = (),
) -> frozenset[str]:
    """Return the tokens of a record. A sensitive record can be granted by id only. `readers` are owner ids."""
    tokens = {owner_token(owner), id_token(memory_id)}
    if sensitive:
        return frozenset(tokens)
    tokens.add(type_token(owner, memory_type))
    tokens.update(tag_token(owner, tag) for tag in tags)
    if context:
        tokens.add(context_token(owner, context))
    if visibility is not Visibility.PRIVATE:
        tokens.update(map(reader_token, readers))
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
    """What a grant in force adds: memories of the grantor, and others' memories that it reshares.

    `own` are the tokens of the grantor's own memories, `ends` when they end (epoch seconds).
    """

    id: str
    grantor: str
    may_write: bool
    parts: tuple[Part, ...]
    own: tuple[str, ...] = field(default=(), compare=False)
    ends: float = field(default=math.inf, compare=False)

    @cached_property
    def tokens(self) -> frozenset[str]:
        return frozenset(token for part in self.parts for token in part.tokens)


@dataclass(frozen=True)
class Principal:
    """The agent that a request acts as, resolved from the connection, never from an argument.

    `owner` is the owner id of new memories, None until the agent first writes; `owners` are all its owner ids; `kept`
    are those that earlier holders of its name left, which it does not own; `grants` are those in force; `hidden` are
    the tokens of deleted owner ids; `quarantined` are agents, and since when (epoch seconds) only they see what they
    write.
    """

    namespace: str
    agent: str
    owner: str | None = None
    owners: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    grants: tuple[Grant, ...] = ()
    hidden: frozenset[str] = frozenset()
    quarantined: tuple[tuple[str, float], ...] = ()
    admin: bool = False

    def of_public(self) -> Principal:
        """Return the principal that reads public memories only."""
        return replace(self, owner=None, owners=(), grants=())

    @cached_property
    def granted(self) -> tuple[str, ...]:
        """The tokens that grants add."""
        return tuple(dict.fromkeys(token for grant in self.grants for part in grant.parts for token in part.tokens))

    @cached_property
    def _ungranted(self) -> tuple[str, ...]:
        """The tokens without grants. What was written for an owner id is not readable under another one."""
        received = () if self.owner is None else (reader_token(self.owner),)
        return (PUBLIC, *map(owner_token, self.owners), *received)

    @cached_property
    def tokens(self) -> tuple[str, ...]:
        return (*self._ungranted, *self.granted)

    @cached_property
    def _held(self) -> frozenset[str]:
        return frozenset(self.tokens)

    def may_read(self, scope: frozenset[str]) -> bool:
        """Whether a record with these tokens is readable."""
        return not scope.isdisjoint(self._held) and scope.isdisjoint(self.hidden)

    def may_read_some(self, scope: frozenset[str]) -> bool:
        """Whether a record of an owner in a scope could be readable: all are shared by token but those shared by id."""
        shared = {part for token in self.granted for part in token.split(":")[:2]}
        return self.may_read(scope) or any(f"o:{part}" in scope or part == "i" for part in shared)

    def could_read(self, scope: frozenset[str], at: float) -> bool:
        """Whether a record that is gone was readable at a time (epoch seconds), as its own or under present grants."""
        parts = (part for grant in self.grants for part in grant.parts if part.at <= at)
        held = set(self._ungranted).union(*(part.tokens for part in parts))
        return not scope.isdisjoint(held) and scope.isdisjoint(self.hidden)

    def may_see(self, record: Record) -> bool:
        """Whether a record is readable and its writer is not in quarantine."""
        since = self.mistrusted.get(record.writer)
        return self.may_read(record.scope) and (since is None or record.updated_at < since)

    @cached_property
    def mistrusted(self) -> dict[str, float]:
        """The other agents in quarantine, and since when."""
        return {name: since for name, since in self.quarantined if name != self.agent}

    def owns(self, owner: str) -> bool:
        return owner in self.owners

    def grantors_of(self, record: Record) -> list[str]:
        """Return the agents whose grants make a record readable."""
        return sorted({grant.grantor for grant in self.grants if not record.scope.isdisjoint(grant.tokens)})

    def grants_to_write(self, scope: frozenset[str]) -> tuple[Grant, ...]:
        """Return the grants that allow changes to a record with these tokens."""
        return tuple(grant for grant in self.grants if grant.may_write and not scope.isdisjoint(grant.tokens))
