"""A plain Python model of grants, to compare the real ones with."""

from __future__ import annotations

from dataclasses import dataclass, field

Token = tuple[str, str, str]
"""A granted token: kind, owner and value; the owner is empty for single memories."""


@dataclass
class Item:
    """A memory with its owner and labels."""

    id: str
    owner: str
    tag: str
    context: str

    @property
    def tokens(self) -> set[Token]:
        """All tokens by which it can be granted."""
        return {("ids", "", self.id), ("tags", self.owner, self.tag), ("context", self.owner, self.context)}


@dataclass
class ModelGrant:
    """A grant: tokens of the grantor's own memories, and reshared ids by parent grant."""

    to: str
    by: str
    write: bool
    selector: tuple[str, tuple[str, ...]]
    own: set[Token] = field(default_factory=set[Token])
    via: dict[str, set[Token]] = field(default_factory=dict[str, set[Token]])

    @property
    def shows(self) -> set[Token]:
        """All tokens that it shows."""
        return self.own.union(*self.via.values())


@dataclass
class GrantModel:
    """All memories and active grants."""

    items: dict[str, Item] = field(default_factory=dict[str, Item])
    grants: dict[str, ModelGrant] = field(default_factory=dict[str, ModelGrant])

    def readable(self, agent: str) -> set[str]:
        """Return the ids of the memories that an agent may read."""
        shown: set[Token] = set[Token]().union(*(grant.shows for grant in self.grants.values() if grant.to == agent))
        return {item.id for item in self.items.values() if item.owner == agent or item.tokens & shown}

    def writable(self, agent: str) -> set[str]:
        """Return the ids of the memories whose content the agent may change."""
        writing = (grant.shows for grant in self.grants.values() if grant.to == agent and grant.write)
        shown = set[Token]().union(*writing)
        return {item.id for item in self.items.values() if item.owner == agent or item.tokens & shown}

    def plan(self, by: str, to: str, kind: str, values: tuple[str, ...], write: bool) -> ModelGrant | None:
        """Return the grant that a share would create; None if it names a memory that may not be shared."""
        plan = ModelGrant(to, by, write, (kind, tuple(sorted(values))))
        roots = {key: grant for key, grant in self.grants.items() if grant.to == by and grant.write and grant.own}
        if kind == "ids":
            return plan if all(self._plan_id(plan, roots, value) for value in values) else None
        plan.own = {(kind, by, value) for value in values}
        for key, root in roots.items():
            if passed := {token for token in root.own if token[0] == kind and token[2] in values}:
                plan.via[key] = passed
        return plan

    def _plan_id(self, plan: ModelGrant, roots: dict[str, ModelGrant], memory_id: str) -> bool:
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

    def same(self, plan: ModelGrant) -> str | None:
        """Return the active grant that a share would replace."""

        def what(grant: ModelGrant) -> object:
            return grant.by, grant.to, grant.selector

        return next((key for key, grant in self.grants.items() if what(grant) == what(plan)), None)

    def put(self, key: str, plan: ModelGrant) -> None:
        """Create or replace a grant; a holder that may no longer write has passed nothing on."""
        before = self.grants.get(key)
        self.grants[key] = plan
        if before is not None and before.write and not plan.write:
            self._end_children(key)

    def end(self, key: str) -> None:
        """End a grant and the reshares that depend on it."""
        del self.grants[key]
        self._end_children(key)

    def _end_children(self, key: str) -> None:
        for child, grant in list(self.grants.items()):
            if grant.via.pop(key, None) is not None:
                self._end_if_empty(child)

    def relabel(self, item: Item) -> None:
        """Apply a change of labels: a reshared id ends when its parent grant no longer covers it."""
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
