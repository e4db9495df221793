"""What a credential grants: an agent in a namespace, and scopes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from memory_core.errors import Forbidden, InvalidArgument, echo

Scope = Literal["read", "write", "tasks", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)


@dataclass(frozen=True, slots=True)
class Access:
    """Who the holder of a credential is and what it may do."""

    agent: str
    namespace: str
    scopes: frozenset[Scope]
    expires_at: float
    token: str = ""  # id of the credential, for the audit only

    @property
    def admin(self) -> bool:
        """Whether it may act for all agents of the namespace."""
        return "admin" in self.scopes

    def check(self, scope: Scope | None) -> None:
        """Raise Forbidden unless a scope is granted. None needs no scope."""
        if scope is not None and scope not in self.scopes and not self.admin:
            raise Forbidden(f"this needs a token with scope {scope}", hint=f"yours has {' '.join(sorted(self.scopes))}")


def known_scopes(names: Iterable[str]) -> frozenset[Scope]:
    """Keep the names that are known scopes."""
    return frozenset(name for name in names if name in SCOPES)


def check_scopes(names: Iterable[str]) -> frozenset[Scope]:
    """Read a list of scopes. Raises InvalidArgument if one is unknown or there is none."""
    given = list(names)
    unknown = [name for name in given if name not in SCOPES]
    if unknown or not given:
        what = f"{echo(unknown[0])} is not a scope" if unknown else "no scope is given"
        raise InvalidArgument(what, hint=f"allowed: {', '.join(SCOPES)}")
    return known_scopes(given)
