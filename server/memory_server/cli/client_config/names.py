"""The agent and the namespace of a client's entry, as the server will read them."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlencode, urlsplit

from memory_core.records.names import canonical_name, check_agent_name, check_name
from memory_server.contract.given_names import became


@dataclass(slots=True)
class EntryNames:
    """Checks names as the server does, and collects what it changed in `notes`. With `exact`, a token names them."""

    exact: bool
    notes: list[str] = field(default_factory=list[str])

    def agent(self, given: str | None) -> str | None:
        """Return an agent's name, None if there is none. Raises InvalidArgument for one that no agent can have."""
        name = self._checked(given, "agent")
        return check_agent_name(name) if name else None

    def namespace(self, given: str | None) -> str | None:
        """Return a namespace's name, None if there is none. Raises InvalidArgument for a bad one."""
        return self._checked(given, "namespace")

    def _checked(self, given: str | None, what: str) -> str | None:
        if not given:
            return None
        name = check_name(given, what) if self.exact else canonical_name(given, what)
        if name != given:
            self.notes.append(f"{became(what, given, name)}.")
        return name


def parameters(url: str | None) -> dict[str, str]:
    """Return the parameters of a URL that are not empty; the last of a name counts."""
    return dict(parse_qsl(urlsplit(url or "").query))


def with_parameters(url: str, values: dict[str, str | None]) -> str:
    """Return a URL with these parameters instead of those that it has of these names. None leaves one out."""
    parts = urlsplit(url)
    kept = [(name, value) for name, value in parse_qsl(parts.query, keep_blank_values=True) if name not in values]
    query = urlencode([*kept, *((name, value) for name, value in values.items() if value)])
    return parts._replace(query=query).geturl()
