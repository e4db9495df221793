"""What a credential grants: an agent in a namespace, and scopes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from memory_core.errors import Forbidden, InvalidArgument, echo
from memory_core.records.authority import ALLOWED_BY, SCOPES, Effect, Power, Scope, scope_for


@dataclass(frozen=True, slots=True)
class Access:
    """Who the holder of a credential is and what it may do."""

    agent: str
    namespace: str
    scopes: frozenset[Power]
    expires_at: float
    token: str = ""  # id of the credential, for the audit only

    def may(self, effect: Effect) -> bool:
        return not self.scopes.isdisjoint(ALLOWED_BY[effect])

    def check(self, effects: Iterable[Effect]) -> None:
        """Raise Forbidden unless all effects are allowed."""
        for effect in effects:
            if not self.may(effect):
                held = " ".join(sorted(self.scopes))
                hint = f"it would {effect}; yours has {held}"
                if "operator" in self.scopes:
                    hint = f"it would {effect}; the operator's view shows and changes nothing else"
                raise Forbidden(f"this needs a token with scope {scope_for(effect)}", hint=hint)


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
