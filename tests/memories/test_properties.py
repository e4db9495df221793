"""Random histories of several agents give the same results on the real stack and on a plain model of the contract.

`FUZZ_STEPS` is the minimum number of steps; see tests/fuzz/run.py for many.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, seed, settings
from support.embedder_fixtures import wait_until
from support.histories import (
    ACTORS,
    HISTORIES,
    LONG,
    OUTSIDER,
    PRIORITIES,
    QUERIES,
    TAGS,
    UNKNOWN,
    Call,
    Long,
    Ref,
    Rev,
)
from support.model import Model
from support.model_records import Arguments, Moment, Outcome, Selected
from support.stack import Agent, Stack, in_own_task

from memory_core.records.keys import Keys
from memory_embedder.engines.weights import DEFAULT_MODEL

FEW_STEPS = 300
STEPS = int(os.environ.get("FUZZ_STEPS", "2000"))
SEED = int(os.environ.get("FUZZ_SEED", "1"))
_namespaces = count()


@dataclass(slots=True)
class World:
    """The agents of one history and the models of their two namespaces."""

    stack: Stack
    agents: dict[str, Agent]
    namespace: str
    here: Model = field(default_factory=Model)
    elsewhere: Model = field(default_factory=Model)

    async def call(self, actor: str, tool: str, arguments: Arguments) -> dict[str, Any]:
        """Call a tool, compare its outcome with the model's and return its answer."""
        model, name = self._view(actor)
        arguments = self._resolved(arguments, actor)
        start = time.time()
        result = await self.agents[actor].raw(tool, **arguments)
        answer = result.structured_content or {}
        outcome: Outcome = answer["error"]["code"] if result.is_error else answer
        try:
            model.check(name, tool, arguments, outcome, Moment(start, time.time()))
        except AssertionError as error:
            error.add_note(f"{actor} called {tool}({str(arguments)[:2000]})\nand got {str(outcome)[:2000]}")
            raise
        return answer

    def _view(self, actor: str) -> tuple[Model, str]:
        return (self.elsewhere, "alice") if actor == OUTSIDER else (self.here, actor)

    def _resolved(self, arguments: Arguments, actor: str) -> Arguments:
        """Replace each Ref and Rev by its id or revision."""
        model, name = self._view(actor)
        everyones = [*self.elsewhere.memories, *self.here.memories]
        own = [memory.id for memory in model.memories.values() if memory.owner == name and not memory.removed]

        def resolve(value: Any) -> Any:
            match value:
                case Ref(back, mine):
                    ids = own if mine and own else everyones
                    return ids[-1 - back % len(ids)] if ids else UNKNOWN
                case Rev(off):
                    memory = model.memories.get(arguments["memory_id"])
                    return (memory.rev if memory else 1) + off
                case Long(number):
                    return LONG[number]
                case list():
                    return [resolve(item) for item in value]
                case dict():
                    return self._resolved(value, actor)
                case _:
                    return value

        if "memory_id" in arguments:
            arguments = {**arguments, "memory_id": resolve(arguments["memory_id"])}
        return {name: resolve(value) for name, value in arguments.items()}

    async def check_everything(self) -> None:
        """Once all vectors are ready, compare everything that each agent can see with the models."""
        for model, actors, namespace in (
            (self.here, ACTORS[:3], self.namespace),
            (self.elsewhere, (OUTSIDER,), f"{self.namespace}-else"),
        ):
            if model.memories:
                await wait_until(lambda n=namespace: self._is_settled(n), 60)
                await self._check_keys(model, Keys(namespace))
                for actor in actors:
                    await self._check_view(model, actor)

    async def _is_settled(self, namespace: str) -> bool:
        keys, client = Keys(namespace), self.stack.client
        assert await client.xlen(keys.dead_jobs) == 0
        return await client.xlen(keys.jobs(DEFAULT_MODEL)) == 0 and await client.zcard(keys.chores) == 0

    async def _check_keys(self, model: Model, keys: Keys) -> None:
        """Redis contains exactly the memories that were not removed, with all their chunks and vectors."""
        found = [
            key.decode() async for key in self.stack.client.scan_iter(match=f"{keys.memory('')[:-4]}*", count=1000)
        ]
        heads = {key.removeprefix(keys.memory_prefix) for key in found if key.startswith(keys.memory_prefix)}
        kept = Selected.by(
            (memory, memory.removed is False or None) for memory in model.memories.values() if not memory.removed
        )
        kept.check_found(sorted(heads), len(model.memories))
        pieces = {f"{name}:{n}" for name in heads for n in range(1, len(model.memories[name].pieces))}
        assert {key.removeprefix(keys.chunk_prefix) for key in found if key.startswith(keys.chunk_prefix)} == pieces
        for piece in pieces:
            ours = await self.stack.client.pttl(keys.memory(piece.partition(":")[0]))
            assert abs(await self.stack.client.pttl(keys.chunk_prefix + piece) - ours) < 5000
        assert {key.removeprefix(keys.use("")) for key in found if key.startswith(keys.use(""))} <= heads

    async def _check_view(self, model: Model, actor: str) -> None:
        everything: Arguments = {"include_archive": True, "limit": 100}
        name = "alice" if actor == OUTSIDER else actor
        await self._check_pages(actor)
        now = time.time()
        mine = model.readable(name, everything, Moment(now, now)).memories
        wanted = {(memory.source, memory.pieces[0]): memory.id for memory in mine}
        looks: list[Arguments] = [
            {"op": "memory_stats"},
            *({"op": "get_agent_memories", "agent_id": other, **everything} for other in ACTORS),
            *({"op": "get_agent_memories", "priorities": [priority]} for priority in PRIORITIES),
            *({"op": "get_agent_memories", "tags": list(TAGS[:2]), "tag_match": match} for match in ("any", "all")),
            *({"op": "semantic_search", "query": query, "mode": "keyword", **everything} for query in QUERIES[::2]),
        ]
        meant = [
            {"op": "semantic_search", "query": f"{source}: {text}" if source else text, "mode": "vector", **everything}
            for source, text in wanted
        ]
        answer = await self.call(actor, "batch_operations", {"operations": looks + meant, "max_tokens": 0})
        assert answer["results"][0]["result"]["vector_backlog"] == 0
        moment = Moment(now, time.time())
        for (source, text), found in zip(wanted, answer["results"][len(looks) :], strict=True):
            near = {hit["memory"]["memory_id"] for hit in found["result"]["hits"] if hit["vector_score"] > 0.9}
            same = [memory for memory in mine if (memory.source, memory.pieces[0]) == (source, text)]
            assert {memory.id for memory in same if memory.lives(moment)} <= near, "not found by its own content"

    async def _check_pages(self, actor: str) -> None:
        """The pages of a list add up to the list."""
        agent, arguments = self.agents[actor], {"include_archive": True, "agent_ids": ["alice", "bob", "carol"]}
        start, cursor, listed = time.time(), {}, list[str]()
        while cursor is not None:
            page = await agent.call("get_agent_memories", limit=13, **arguments, **cursor)
            listed += [memory["memory_id"] for memory in page["memories"]]
            cursor = {"cursor": page["next_cursor"]} if "next_cursor" in page else None
        model, name = self._view(actor)
        model.readable(name, arguments, Moment(start, time.time())).check_listed(listed, 1000)


async def run_history(stack: Stack, history: list[Call], tally: Counter[str]) -> int:
    """Run a history in two fresh namespaces, compare throughout and return the number of steps."""
    namespace, steps = f"history-{next(_namespaces)}", 0
    async with AsyncExitStack() as connections:
        agents: dict[str, Agent] = {}
        for actor in ACTORS:
            name, where = ("alice", f"{namespace}-else") if actor == OUTSIDER else (actor, namespace)
            agents[actor] = await connections.enter_async_context(in_own_task(stack.server.agent(name, where)))
        world = World(stack, agents, namespace)
        for call in history:
            await world.call(call.actor, call.tool, call.arguments)
            steps += len(call.arguments.get("operations", "1"))
        await world.check_everything()
    tally.update(world.here.tally + world.elsewhere.tally)
    return steps


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def session_loop() -> AsyncGenerator[asyncio.AbstractEventLoop]:
    """The event loop of the stack's server."""
    yield asyncio.get_running_loop()


_SLOW = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example)


@pytest.mark.parametrize("least", [FEW_STEPS, pytest.param(STEPS, marks=pytest.mark.long)])
@pytest.mark.filterwarnings("ignore:Generating overly large repr")
def test_random_histories_agree_with_the_model(
    stack: Stack, session_loop: asyncio.AbstractEventLoop, least: int, record_property: Any
) -> None:
    """Each seed gives a trivial history and two random ones. From more, Hypothesis would make similar ones."""
    steps, tally, began, current = 0, Counter[str](), time.monotonic(), SEED

    @settings(max_examples=3, deadline=None, database=None, suppress_health_check=_SLOW)
    @given(HISTORIES)
    def agrees(history: list[Call]) -> None:
        nonlocal steps
        try:
            steps += session_loop.run_until_complete(run_history(stack, history, tally))
        except Exception as error:
            note = "\n".join(getattr(error, "__notes__", ()))
            print(f"FUZZ_SEED={current} {type(error).__name__}: {error}\n{note}", flush=True)
            raise

    while steps < least:
        seed(current)(agrees)()
        current += 1
    record_property("steps", steps)
    print(f"\n{steps} steps, seeds {SEED} to {current - 1}, {steps / (time.monotonic() - began):.0f} a second")
    print(", ".join(f"{name} {number}" for name, number in sorted(tally.items())))
