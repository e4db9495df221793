"""The contract of grants in plain Python, which the real ones are compared with."""

from __future__ import annotations

from dataclasses import dataclass, field

Token = tuple[str, str, str]
"""What a grant names: a kind, an owner and a value; for single memories the owner is left empty."""


@dataclass
class Item:
    """A memory: whose it is and how it is labelled."""

    id: str
    owner: str
    tag: str
    context: str

    @property
    def tokens(self) -> set[Token]:
        """All tokens by which it can be granted."""
        return {("ids", "", self.id), ("tags", self.owner, self.tag), ("context", self.owner, self.context)}


@dataclass
class Given:
    """A grant: what it shows of the grantor's, and of others' under the grants that it hangs on."""

    to: str
    by: str
    write: bool
    selector: tuple[str, tuple[str, ...]]
    own: set[Token] = field(default_factory=set[Token])
    via: dict[str, set[Token]] = field(default_factory=dict[str, set[Token]])

    @property
    def shows(self) -> set[Token]:
        """Everything that it shows."""
        return self.own.union(*self.via.values())


@dataclass
class GrantModel:
    """All memories and the grants in force."""

    items: dict[str, Item] = field(default_factory=dict[str, Item])
    grants: dict[str, Given] = field(default_factory=dict[str, Given])

    def readable(self, agent: str) -> set[str]:
        """Give the ids of the memories that an agent may read."""
        shown: set[Token] = set[Token]().union(*(grant.shows for grant in self.grants.values() if grant.to == agent))
        return {item.id for item in self.items.values() if item.owner == agent or item.tokens & shown}

    def writable(self, agent: str) -> set[str]:
        """Give the ids of those whose content the agent may change."""
        writing = (grant.shows for grant in self.grants.values() if grant.to == agent and grant.write)
        shown = set[Token]().union(*writing)
        return {item.id for item in self.items.values() if item.owner == agent or item.tokens & shown}

    def plan(self, by: str, to: str, kind: str, values: tuple[str, ...], write: bool) -> Given | None:
        """Say what a share would give; None where it names a memory that may not be shared."""
        plan = Given(to, by, write, (kind, tuple(sorted(values))))
        roots = {key: grant for key, grant in self.grants.items() if grant.to == by and grant.write and grant.own}
        if kind == "ids":
            return plan if all(self._plan_id(plan, roots, value) for value in values) else None
        plan.own = {(kind, by, value) for value in values}
        for key, root in roots.items():
            if passed := {token for token in root.own if token[0] == kind and token[2] in values}:
                plan.via[key] = passed
        return plan

    def _plan_id(self, plan: Given, roots: dict[str, Given], memory_id: str) -> bool:
        item, token = self.items.get(memory_id), ("ids", "", memory_id)
        if item is None:
            return False
        if item.owner == plan.by:
            plan.own.add(token)
            return True
        covering = [key for key, root in roots.items() if root.own & item.tokens]
        for key in covering:
            plan.via.setdefault(key, set()).add(token)
        return bool(covering)

    def same(self, plan: Given) -> str | None:
        """Give the grant in force that a share would renew."""

        def what(grant: Given) -> object:
            return grant.by, grant.to, grant.write, grant.selector

        return next((key for key, grant in self.grants.items() if what(grant) == what(plan)), None)

    def end(self, key: str) -> None:
        """End a grant and what hangs on it."""
        del self.grants[key]
        for child, grant in list(self.grants.items()):
            if grant.via.pop(key, None) is not None:
                self._end_if_empty(child)

    def relabel(self, item: Item) -> None:
        """Follow a change of labels: what was passed on by id needs its cover still."""
        token = ("ids", "", item.id)
        for key, grant in list(self.grants.items()):
            for above, passed in list(grant.via.items()):
                if token in passed and not self.grants[above].own & item.tokens:
                    passed.discard(token)
                    if not passed:
                        del grant.via[above]
            self._end_if_empty(key)

    def _end_if_empty(self, key: str) -> None:
        if key in self.grants and not self.grants[key].shows:
            self.end(key)
