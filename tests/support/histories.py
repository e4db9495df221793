"""Random histories of calls by several agents; their arguments stay short when Hypothesis shrinks a failure."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, TypeVar

from hypothesis import strategies as st

from support.model_records import Arguments

T = TypeVar("T")
CALLS = 90
"""Maximum calls per history; a batch of several operations is one call."""

ACTORS = ("alice", "bob", "carol", "outsider")
UNKNOWN = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
OUTSIDER = "outsider"
"""An agent named alice, in another namespace."""


@dataclass(frozen=True, slots=True)
class Ref:
    """Placeholder for a memory id: `back` positions before the newest, among the actor's own or all memories."""

    back: int = 0
    own: bool = True


@dataclass(frozen=True, slots=True)
class Rev:
    """Placeholder for the revision of the memory that the same call names, or for a wrong one."""

    off: int = 0


@dataclass(frozen=True, slots=True)
class Long:
    """Placeholder for a content of several chunks."""

    number: int


@dataclass(frozen=True, slots=True)
class Call:
    """One tool call by an actor; Ref and Rev in its arguments are resolved when it runs."""

    actor: str
    tool: str
    arguments: Arguments


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


def _maybe(**strategies: st.SearchStrategy[Any]) -> st.SearchStrategy[Arguments]:
    """Include each argument with a probability of one third."""

    @st.composite
    def chosen(draw: st.DrawFn) -> Arguments:
        return {name: draw(strategy) for name, strategy in strategies.items() if draw(st.integers(0, 2)) == 2}

    return chosen()


def _always(**arguments: Any) -> st.SearchStrategy[Arguments]:
    return st.just(arguments)


def _merged(*strategies: st.SearchStrategy[Arguments]) -> st.SearchStrategy[Arguments]:
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

# Weight in percent, tool, arguments.
KINDS: tuple[tuple[int, str, st.SearchStrategy[Arguments]], ...] = (
    (24, "store_memory", STORE),
    (4, "store_memory", _merged(STORE, _always(ttl_seconds=1))),
    (4, "store_memory", _merged(STORE, KEYED)),
    (4, "store_memory", _merged(st.fixed_dictionaries({"content": st.sampled_from(SHORT[:2])}), KEYED)),
    (
        2,
        "store_memory",
        _merged(
            STORE,
            st.sampled_from(({"content": " \n"}, {"agent_id": "dave"}, {"sensitive": True, "visibility": "public"})),
        ),
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
_WEIGHTED_KINDS = [(tool, arguments) for weight, tool, arguments in KINDS for _ in range(weight)]
_ACTOR = st.sampled_from([*["alice"] * 8, *["bob"] * 4, *["carol"] * 3, OUTSIDER])


@st.composite
def operations(draw: st.DrawFn) -> tuple[str, Arguments]:
    """A tool and its arguments."""
    tool, arguments = _WEIGHTED_KINDS[draw(st.integers(0, len(_WEIGHTED_KINDS) - 1))]
    return tool, draw(arguments)


@st.composite
def calls(draw: st.DrawFn) -> Call | None:
    """Mostly single calls, some batches; None means no call, and shrinking prefers it."""
    kind = draw(st.integers(0, 19))
    if not kind:
        return None
    actor = draw(_ACTOR)
    if kind < 13:
        return Call(actor, *draw(operations()))
    batch = [{"op": tool, **arguments} for tool, arguments in draw(st.lists(operations(), min_size=1, max_size=9))]
    stop = {"stop_on_error": True} if kind == 19 else {}
    return Call(actor, "batch_operations", {"operations": batch, "max_tokens": 0, **stop})


HISTORIES = st.lists(calls(), min_size=CALLS, max_size=CALLS).map(lambda made: [call for call in made if call])
