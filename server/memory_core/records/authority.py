"""What credentials may do: one table of effects and the scopes that allow them.

Each tool, resource and route declares its effects, and the gate derives the scopes from this table.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Literal, get_args

Scope = Literal["read", "write", "tasks", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

Power = Scope | Literal["operator"]
"""A scope of a token, or the role of an operator's dashboard session, which no token has."""


class Effect(StrEnum):
    """What an operation does, as a phrase that completes `it would …`."""

    READ_MEMORIES = "read memories"
    READ_PRIVATE = "read memories that are not public"
    WRITE_MEMORIES = "write memories"
    DELETE_MEMORIES = "delete memories"
    MOVE_MEMORIES = "hand memories to another agent"
    SHARE_MEMORIES = "share memories"
    END_GRANTS = "end grants"
    SEE_OWN = "list its own tasks, grants and events"
    SEE_TASKS = "see tasks"
    SEE_GRANTS = "see grants"
    SEE_EVENTS = "see events"
    SEE_TEAM = "see agents, sidecars and figures"
    OVERSEE = "see the tasks, grants and figures of all agents"
    SEE_AUDIT = "see the audit"
    SUBMIT_TASKS = "submit tasks"
    WORK_ON_TASKS = "take and finish tasks"
    CHANGE_TASKS = "cancel or retry tasks"
    REGISTER = "register agents"
    ACT_FOR_OTHERS = "act for another agent"


_READ, _WRITE, _TASKS = frozenset[Power]({"read"}), frozenset[Power]({"write"}), frozenset[Power]({"tasks"})
_ADMIN, _OPERATOR = frozenset[Power]({"admin"}), frozenset[Power]({"operator"})

ALLOWED_BY: Mapping[Effect, frozenset[Power]] = {
    Effect.READ_MEMORIES: _READ | _ADMIN | _OPERATOR,
    Effect.READ_PRIVATE: _READ | _ADMIN,
    Effect.WRITE_MEMORIES: _WRITE | _ADMIN,
    Effect.DELETE_MEMORIES: _WRITE | _ADMIN,
    Effect.MOVE_MEMORIES: _WRITE | _ADMIN,
    Effect.SHARE_MEMORIES: _WRITE | _ADMIN,
    Effect.END_GRANTS: _WRITE | _ADMIN,
    Effect.SEE_OWN: _READ | _ADMIN,
    Effect.SEE_TASKS: _READ | _ADMIN | _OPERATOR,
    Effect.SEE_GRANTS: _READ | _ADMIN | _OPERATOR,
    Effect.SEE_EVENTS: _READ | _ADMIN | _OPERATOR,
    Effect.SEE_TEAM: _READ | _ADMIN | _OPERATOR,
    Effect.OVERSEE: _ADMIN | _OPERATOR,
    Effect.SEE_AUDIT: _ADMIN | _OPERATOR,
    Effect.SUBMIT_TASKS: _TASKS | _ADMIN,
    Effect.WORK_ON_TASKS: _TASKS | _ADMIN,
    Effect.CHANGE_TASKS: _TASKS | _ADMIN,
    Effect.REGISTER: _TASKS | _ADMIN,
    Effect.ACT_FOR_OTHERS: _ADMIN,
}


def scope_for(effect: Effect) -> Scope:
    """Return the narrowest scope that allows an effect."""
    return next(scope for scope in SCOPES if scope in ALLOWED_BY[effect])
