"""Random histories of several agents, run on the real stack and on a plain model of the contract, agree.

`FUZZ_STEPS` says how many steps to take at least; see tests/fuzz/run.py for many.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import count
from typing import Any, TypeVar

import pytest
import pytest_asyncio
from embedder_fixtures import wait_until
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from model import Model, Moment, Outcome, Said, Selected
from stack import Agent, Stack, in_own_task

from memory_core.keys import Keys

T = TypeVar("T")
STEPS = int(os.environ.get("FUZZ_STEPS", "2000"))
SEED = int(os.environ.get("FUZZ_SEED", "1"))
CALLS = 90
"""Calls of one history at most; a batch of several operations is one call."""
_namespaces = count()

ACTORS = ("alice", "bob", "carol", "outsider")
UNKNOWN = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
OUTSIDER = "outsider"
"""An agent named alice, in another namespace."""


@dataclass(frozen=True, slots=True)
class Ref:
    """Stands for the id of a memory: the newest stored, or one so many before it, of the actor's own or of all."""

    back: int = 0
    own: bool = True


@dataclass(frozen=True, slots=True)
class Rev:
    """Stands for the revision of the memory that the same call names, or one that it does not have."""

    off: int = 0


@dataclass(frozen=True, slots=True)
class Long:
    """Stands for a content of several pieces."""

    number: int


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a tool by an actor; in its arguments a Ref or Rev stands for what is known only then."""

    actor: str
    tool: str
    said: Said


_chance = random.Random(4)
_FILLER = "gravel meadow violet copper winter saddle orchard thunder velvet candle ribbon marble".split()


def _prose(fact: str, sentences: int) -> str:
    lines = [f"{' '.join(_chance.choices(_FILLER, k=9)).capitalize()}." for _ in range(sentences)]
    return " ".join([*lines, fact, *lines[:3]])


SHORT = (
    "The lantern in the harbour burns all night.",
    "Boats are running late because of the storm.",
    "A boat ran aground near the lantern.",
    "parse_config_file raises ValueError on empty input.",
    "Die Straße zum Café führt über die Brücke.",
    "東京の会議は来週の火曜日です。",
    "Встреча перенесена на среду утром.",
    "Paris is where the two of them first met.",
    "Meet at noon.",
    "naïve CAFÉ owners run http://example.org/boats?x=1&y={2}",
    "to be or not to be",
    "🫨 | -- @scope:{pub} \\ 'quoted' \"text\"",
)
LONG = (
    _prose("The safe in the cellar opens with the number 4711.", 30),
    _prose("Zeppelins land on the roof every Tuesday.", 45),
    _prose("The meeting in Tokyo is about boats.", 70),
)
QUERIES = (
    *("lantern", "running boats", "the of and", "cafe strasse", "会議", "config file", "нигде", "ВСТРЕЧА"),
    *("zeppelin safe 4711", "Mel", "where do boats meet?", "@scope:{pub}", "copper winter", "nowhere to be seen"),
)
CONTENTS = st.sampled_from([*SHORT * 3, *map(Long, range(len(LONG)))])
TYPES = ("context", "conversation", "code", "document", "task", "search_result", "system_state", "embedding")
PRIORITIES = ("medium", "critical", "high", "low", "archive")
TAGS = ("red", "green", "a,b", "-x|{y}*", "größe")
CONTEXTS = ("here", "there, {maybe}|*", "日本")
SOURCES = ("Mel", "notes/böats.md")
WHEN = ("2020-01-01", "2021-06-15T12:00:00+02:00", 1_640_995_200)
BOUNDS = ("2020-01-01", "2021-01-01", 1_640_995_200, "2023-01-01")
LIMITS = st.sampled_from([100, 20, 3, 1])


def _maybe(**strategies: st.SearchStrategy[Any]) -> st.SearchStrategy[Said]:
    """Each argument in one case of three."""

    @st.composite
    def chosen(draw: st.DrawFn) -> Said:
        return {name: draw(strategy) for name, strategy in strategies.items() if draw(st.integers(0, 2)) == 2}

    return chosen()


def _always(**said: Any) -> st.SearchStrategy[Said]:
    return st.just(said)


def _merged(*strategies: st.SearchStrategy[Said]) -> st.SearchStrategy[Said]:
    return st.tuples(*strategies).map(lambda parts: {name: part[name] for part in parts for name in part})


def _some(values: tuple[T, ...], most: int = 2, least: int = 0) -> st.SearchStrategy[list[T]]:
    return st.lists(st.sampled_from(values), min_size=least, max_size=most)


REFS = st.builds(Ref, st.integers(0, 12), st.sampled_from((True, True, True, False)))
TARGET = st.fixed_dictionaries({"memory_id": REFS})
FILTERS = _maybe(
    agent_ids=_some(("alice", "bob", "carol", "nobody"), least=1),
    memory_types=_some(TYPES, least=1),
    priorities=_some(PRIORITIES, least=1),
    tags=_some(TAGS),
    tag_match=st.sampled_from(("any", "all")),
    context=st.sampled_from(CONTEXTS),
    source=st.sampled_from(SOURCES),
    since=st.sampled_from(BOUNDS),
    until=st.sampled_from(BOUNDS),
    include_archive=st.booleans(),
)
FEW_FILTERS = st.one_of(_always(), _maybe(memory_types=_some(TYPES), tags=_some(TAGS)), FILTERS)
DETAILS = _maybe(
    priority=st.sampled_from(PRIORITIES),
    visibility=st.sampled_from(("public", "shared", "private")),
    tags=_some(TAGS, 3),
    context=st.sampled_from(CONTEXTS),
    metadata=st.sampled_from(({"n": 1}, {"deep": [{"é": None}]})),
)
STORE = _merged(
    st.fixed_dictionaries({"content": CONTENTS, "wait": st.sampled_from((*[False] * 7, True))}),
    DETAILS,
    _maybe(memory_type=st.sampled_from(TYPES), source=st.sampled_from(SOURCES), occurred_at=st.sampled_from(WHEN)),
)
UPDATE = _merged(TARGET, _maybe(content=CONTENTS, expected_rev=st.sampled_from((Rev(0), Rev(0), Rev(-1)))), DETAILS)
CLEAR = _merged(FILTERS, _maybe(confirm=st.just(True), dry_run=st.just(True)))
CLEAR_IDS = _merged(
    st.fixed_dictionaries({"memory_ids": st.lists(REFS, min_size=1, max_size=3)}),
    _maybe(confirm=st.just(True), dry_run=st.just(True)),
)
LIST = _merged(FEW_FILTERS, _maybe(agent_id=st.sampled_from(("alice", "bob", "nobody")), limit=LIMITS))
SEARCH = _merged(
    st.fixed_dictionaries(
        {"query": st.sampled_from(QUERIES), "mode": st.sampled_from(("keyword", "hybrid", "vector")), "limit": LIMITS}
    ),
    FEW_FILTERS,
)

KEYED = st.fixed_dictionaries({"idempotency_key": st.sampled_from(("key 0", "key 1", "key 2"))})

# How often of a hundred, which tool, with which arguments.
KINDS: tuple[tuple[int, str, st.SearchStrategy[Said]], ...] = (
    (24, "store_memory", STORE),
    (4, "store_memory", _merged(STORE, _always(ttl_seconds=1))),
    (4, "store_memory", _merged(STORE, KEYED)),
    (4, "store_memory", _merged(st.fixed_dictionaries({"content": st.sampled_from(SHORT[:2])}), KEYED)),
    (
        2,
        "store_memory",
        _merged(STORE, st.sampled_from(({"content": " \n"}, {"agent_id": "dave"}, {"sensitive": True}))),
    ),
    (19, "update_memory", UPDATE),
    (2, "update_memory", _merged(TARGET, _maybe(content=st.just(""), context=st.just(""), metadata=st.just({})))),
    (8, "retrieve_memory", TARGET),
    (11, "get_agent_memories", LIST),
    (10, "semantic_search", SEARCH),
    (3, "find_similar_memories", _merged(TARGET, FEW_FILTERS, _maybe(limit=LIMITS, exact=st.booleans()))),
    (5, "clear_memory", CLEAR_IDS),
    (1, "clear_memory", CLEAR),
    (1, "clear_memory", _merged(CLEAR, _always(expired_only=True))),
    (2, "memory_stats", _maybe(agent_id=st.sampled_from(ACTORS))),
)
_LOT = [(tool, said) for often, tool, said in KINDS for _ in range(often)]
_ACTOR = st.sampled_from([*["alice"] * 8, *["bob"] * 4, *["carol"] * 3, OUTSIDER])


@st.composite
def operations(draw: st.DrawFn) -> tuple[str, Said]:
    """A tool and what to say to it."""
    tool, said = _LOT[draw(st.integers(0, len(_LOT) - 1))]
    return tool, draw(said)


@st.composite
def calls(draw: st.DrawFn) -> Call | None:
    """Mostly single calls, some batches; None, which shrinking prefers, is no call."""
    kind = draw(st.integers(0, 19))
    if not kind:
        return None
    actor = draw(_ACTOR)
    if kind < 13:
        return Call(actor, *draw(operations()))
    together = [{"op": tool, **said} for tool, said in draw(st.lists(operations(), min_size=1, max_size=9))]
    stop = {"stop_on_error": True} if kind == 19 else {}
    return Call(actor, "batch_operations", {"operations": together, **stop})


HISTORIES = st.lists(calls(), min_size=CALLS, max_size=CALLS).map(lambda made: [call for call in made if call])


@dataclass(slots=True)
class World:
    """The actors of one history with the models of their two namespaces."""

    stack: Stack
    agents: dict[str, Agent]
    namespace: str
    here: Model = field(default_factory=Model)
    elsewhere: Model = field(default_factory=Model)

    async def call(self, actor: str, tool: str, said: Said) -> dict[str, Any]:
        """Call a tool, compare its outcome with the model's, and give its answer."""
        model, name = self._view(actor)
        said = self._resolved(said, actor)
        start = time.time()
        result = await self.agents[actor].raw(tool, **said)
        answer = result.structured_content or {}
        outcome: Outcome = answer["error"]["code"] if result.is_error else answer
        try:
            model.check(name, tool, said, outcome, Moment(start, time.time()))
        except AssertionError as error:
            error.add_note(f"{actor} called {tool}({str(said)[:2000]})\nand got {str(outcome)[:2000]}")
            raise
        return answer

    def _view(self, actor: str) -> tuple[Model, str]:
        return (self.elsewhere, "alice") if actor == OUTSIDER else (self.here, actor)

    def _resolved(self, said: Said, actor: str) -> Said:
        """Put ids and revisions where a Ref or Rev stands."""
        model, name = self._view(actor)
        everyones = [*self.elsewhere.memories, *self.here.memories]
        own = [memory.id for memory in model.memories.values() if memory.owner == name and not memory.removed]

        def resolve(value: Any) -> Any:
            match value:
                case Ref(back, mine):
                    ids = own if mine and own else everyones
                    return ids[-1 - back % len(ids)] if ids else UNKNOWN
                case Rev(off):
                    memory = model.memories.get(said["memory_id"])
                    return (memory.rev if memory else 1) + off
                case Long(number):
                    return LONG[number]
                case list():
                    return [resolve(item) for item in value]
                case dict():
                    return self._resolved(value, actor)
                case _:
                    return value

        if "memory_id" in said:
            said = {**said, "memory_id": resolve(said["memory_id"])}
        return {name: resolve(value) for name, value in said.items()}

    async def check_everything(self) -> None:
        """Once all vectors are there, everything that each actor can see is as the models say."""
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
        return await client.xlen(keys.jobs) == 0 and await client.zcard(keys.chores) == 0

    async def _check_keys(self, model: Model, keys: Keys) -> None:
        """Redis holds every memory that was not removed, with all of its pieces and vectors, and nothing else."""
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
        everything: Said = {"include_archive": True, "limit": 100}
        name = "alice" if actor == OUTSIDER else actor
        await self._check_pages(actor)
        now = time.time()
        mine = model.readable(name, everything, Moment(now, now)).memories
        wanted = {(memory.source, memory.pieces[0]): memory.id for memory in mine}
        looks: list[Said] = [
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
        answer = await self.call(actor, "batch_operations", {"operations": looks + meant})
        assert answer["results"][0]["result"]["vector_backlog"] == 0
        moment = Moment(now, time.time())
        for (source, text), found in zip(wanted, answer["results"][len(looks) :], strict=True):
            near = {hit["memory"]["memory_id"] for hit in found["result"]["hits"] if hit["vector_score"] > 0.9}
            same = [memory for memory in mine if (memory.source, memory.pieces[0]) == (source, text)]
            assert {memory.id for memory in same if memory.lives(moment)} <= near, "not found by its own content"

    async def _check_pages(self, actor: str) -> None:
        """Pages of a list hold, one after the other, what the list holds."""
        agent, said = self.agents[actor], {"include_archive": True, "agent_ids": ["alice", "bob", "carol"]}
        start, cursor, listed = time.time(), {}, list[str]()
        while cursor is not None:
            page = await agent.call("get_agent_memories", limit=13, **said, **cursor)
            listed += [memory["memory_id"] for memory in page["memories"]]
            cursor = {"cursor": page["next_cursor"]} if "next_cursor" in page else None
        model, name = self._view(actor)
        model.readable(name, said, Moment(start, time.time())).check_listed(listed, 1000)


async def run_history(stack: Stack, history: list[Call], tally: Counter[str]) -> int:
    """Run a history in two fresh namespaces, compare throughout, and give the number of steps."""
    namespace, steps = f"history-{next(_namespaces)}", 0
    async with AsyncExitStack() as connections:
        agents: dict[str, Agent] = {}
        for actor in ACTORS:
            name, where = ("alice", f"{namespace}-else") if actor == OUTSIDER else (actor, namespace)
            agents[actor] = await connections.enter_async_context(in_own_task(stack.server.agent(name, where)))
        world = World(stack, agents, namespace)
        for call in history:
            await world.call(call.actor, call.tool, call.said)
            steps += len(call.said.get("operations", "1"))
        await world.check_everything()
    tally.update(world.here.tally + world.elsewhere.tally)
    return steps


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def session_loop() -> AsyncGenerator[asyncio.AbstractEventLoop]:
    """The event loop that the stack's server runs on."""
    yield asyncio.get_running_loop()


_SLOW = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example)


@pytest.mark.filterwarnings("ignore:Generating overly large repr")
def test_random_histories_agree_with_the_model(
    stack: Stack, session_loop: asyncio.AbstractEventLoop, record_property: Any
) -> None:
    """Each seed gives a trivial history and two random ones: from more, Hypothesis would make likenesses."""
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

    while steps < STEPS:
        seed(current)(agrees)()
        current += 1
    record_property("steps", steps)
    print(f"\n{steps} steps, seeds {SEED} to {current - 1}, {steps / (time.monotonic() - began):.0f} a second")
    print(", ".join(f"{name} {number}" for name, number in sorted(tally.items())))
