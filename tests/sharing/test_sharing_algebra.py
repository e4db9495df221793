"""Random shares, reshares, revokes and relabels by several agents give the access that the model predicts."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from support.grants_model import GrantModel, Item
from support.stack import Stack

from memory_core.errors import Forbidden, NotFound
from memory_core.records.keys import Keys
from memory_server.agents import registry
from memory_server.contract.arguments import ListArguments, StoreArguments, UpdateArguments
from memory_server.contract.sharing import ShareArguments
from memory_server.contract.task_arguments import RegisterArguments
from memory_server.engine.request_context import Caller, RequestContext
from memory_server.memories import get, store, update
from memory_server.service import Service
from memory_server.sharing import grants

AGENTS = ("alice", "bob", "carol")
LABELS = ("x", "y")
_namespaces = count()


@dataclass(frozen=True)
class Share:
    """Share with another agent; memories are given by number."""

    by: int
    to: int
    kind: str
    values: tuple[int, ...]
    write: bool


@dataclass(frozen=True)
class Revoke:
    """Revoke one of the grants made so far."""

    which: int


@dataclass(frozen=True)
class Relabel:
    """Give a memory another tag or context."""

    which: int
    kind: str
    label: int


Step = Share | Revoke | Relabel


def _shares(*kinds: str, write: st.SearchStrategy[bool], most: int = 2) -> st.SearchStrategy[Share]:
    numbers = st.lists(st.integers(0, 5), min_size=1, max_size=most, unique=True).map(tuple)
    return st.builds(Share, st.integers(0, 2), st.integers(1, 2), st.sampled_from(kinds), numbers, write)


def _several(*steps: st.SearchStrategy[Step]) -> st.SearchStrategy[list[Step]]:
    return st.lists(st.one_of(*steps), min_size=5, max_size=9)


relabellings = st.builds(Relabel, st.integers(0, 5), st.sampled_from(["tags", "context"]), st.integers(0, 1))
revokings = st.builds(Revoke, st.integers(0, 30))
histories = st.tuples(
    _several(_shares("tags", "context", write=st.just(True))),
    _several(_shares("ids", write=st.booleans(), most=1)),
    _several(_shares("ids", "tags", "context", write=st.booleans()), revokings, relabellings),
    _several(revokings, relabellings),
).map(lambda parts: [step for part in parts for step in part])


@dataclass
class World:
    """The real stack next to its model."""

    service: Service
    namespace: str
    tally: Counter[str]
    model: GrantModel = field(default_factory=GrantModel)
    given: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])

    def request(self, name: str) -> RequestContext:
        """Act as an agent."""
        return RequestContext(Caller(self.namespace, name))

    async def prepare(self) -> None:
        """Register all agents and give each two memories."""
        for name in AGENTS:
            await registry.register_agent(self.service, self.request(name), RegisterArguments())
            for label in LABELS:
                new = StoreArguments(content=f"{label} of {name}", tags=[label], context=label, wait=False)
                stored = await store.store_memory(self.service, self.request(name), new)
                self.model.items[stored.memory_id] = Item(stored.memory_id, name, label, label)

    async def share(self, step: Share) -> None:
        """Share, or be refused, as the model predicts."""
        by, to = AGENTS[step.by], AGENTS[(step.by + step.to) % 3]
        ids = list(self.model.items)
        named = tuple(dict.fromkeys(ids[n] if step.kind == "ids" else LABELS[n % 2] for n in step.values))
        if step.kind == "context":
            named = named[:1]
        plan = self.model.plan(by, to, step.kind, named, step.write)
        share = ShareArguments(
            target_agent=to,
            memory_ids=list(named) if step.kind == "ids" else None,
            tags=list(named) if step.kind == "tags" else None,
            context=named[0] if step.kind == "context" else None,
            permission="write" if step.write else "read",
        )
        try:
            answer = await grants.share_context(self.service, self.request(by), share)
        except NotFound:
            assert plan is None
            self.tally["refused"] += 1
            return
        assert plan is not None
        renewed = self.model.same(plan)
        assert renewed in (None, answer.grant_id)
        self.model.put(answer.grant_id, plan)
        self.given.append((by, answer.grant_id))
        self.tally["shared on" if plan.via else "renewed" if renewed else "shared"] += 1

    async def revoke(self, step: Revoke) -> None:
        """Revoke a grant; an ended one stays ended."""
        if self.given:
            by, key = self.given[step.which % len(self.given)]
            before = len(self.model.grants)
            if key in self.model.grants:
                self.model.end(key)
            answer = await grants.revoke_shared(self.service, self.request(by), key)
            assert answer.grants_ended == before - len(self.model.grants)
            self.tally["ended with others" if answer.grants_ended > 1 else "revoked"] += 1

    async def relabel(self, step: Relabel) -> None:
        """Change a label as the owner."""
        item, label = list(self.model.items.values())[step.which], LABELS[step.label]
        change: dict[str, Any] = {"tags": [label]} if step.kind == "tags" else {"context": label}
        changes = UpdateArguments(memory_id=item.id, **change)
        await update.update_memory(self.service, self.request(item.owner), changes)
        setattr(item, "tag" if step.kind == "tags" else "context", label)
        before = len(self.model.grants)
        self.model.relabel(item)
        self.tally["narrowed" if len(self.model.grants) < before else "relabelled"] += 1

    async def check(self) -> None:
        """Every agent lists exactly the memories that the model lets it read."""
        for name in AGENTS:
            everything = ListArguments(agent_ids=list(AGENTS), limit=50)
            listed = await get.list_memories(self.service, self.request(name), everything)
            assert {memory.memory_id for memory in listed.memories} == self.model.readable(name), name
            assert listed.total == len(listed.memories)

    async def check_writes(self) -> None:
        """Every agent can change exactly the contents that the model lets it change."""
        for name in AGENTS:
            writable: set[str] = set()
            for memory_id in self.model.items:
                changes = UpdateArguments(memory_id=memory_id, metadata={"by": name})
                try:
                    await update.update_memory(self.service, self.request(name), changes)
                    writable.add(memory_id)
                except (Forbidden, NotFound):
                    pass
            assert writable == self.model.writable(name), name


async def _run(stack: Stack, history: list[Step], tally: Counter[str]) -> None:
    world = World(await stack.server.runtime.service(), f"algebra-{next(_namespaces)}", tally)
    await world.prepare()
    for step in history:
        match step:
            case Share():
                await world.share(step)
            case Revoke():
                await world.revoke(step)
            case Relabel():
                await world.relabel(step)
        await world.check()
    await world.check_writes()
    for _, key in world.given:
        if key in world.model.grants:
            await grants.revoke_shared(world.service, RequestContext(Caller(world.namespace, "admin", admin=True)), key)
    keys = Keys(world.namespace)
    for pattern in ("granted", "granting", "children", "reshared"):
        left = [key async for key in stack.client.scan_iter(match=f"{keys.prefix}{pattern}:*", count=1000)]
        assert not left, left


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def session_loop() -> AsyncGenerator[asyncio.AbstractEventLoop]:
    """The event loop that the stack's server runs on."""
    yield asyncio.get_running_loop()


@pytest.mark.long
def test_random_grants_agree_with_the_model(stack: Stack, session_loop: asyncio.AbstractEventLoop) -> None:
    tally = Counter[str]()

    @seed(1)
    @settings(max_examples=15, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
    @given(histories)
    def agrees(history: list[Step]) -> None:
        session_loop.run_until_complete(_run(stack, history, tally))

    agrees()
    print(dict(tally))
    assert {"shared", "shared on", "renewed", "refused", "revoked", "ended with others", "narrowed"} <= tally.keys()
