"""Floods a namespace with hostile memories and measures how that changes the searches of an agent.

The hostile vectors are closer to the agent's queries than its own memories, and the texts repeat the queries' words.
`python -m benchmarks.poisoning [pieces]` measures; the tests use the same parts at a small scale.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.metrics import percentile
from memory_core.records.memory import MemoryType, Visibility
from memory_core.records.vectors import Matrix
from memory_core.settings.settings import Settings
from memory_server.contract.arguments import SearchArguments, StoreArguments
from memory_server.engine.request_context import Caller, RequestContext
from memory_server.local.stop import stop
from memory_server.memories.store import store_memory
from memory_server.search.search import semantic_search
from memory_server.service import Service

QUERIES = (
    "when do the fishing boats leave the harbour",
    "what did the board decide about the launch plan",
    "why does the nightly build fail on windows",
    "which spices go into the summer soup",
    "who repaired the roof of the old lighthouse",
    "how many tickets were sold for the concert",
    "where is the spare key of the archive room",
    "which team won the chess match in april",
)
FORMS = tuple("boat boats boating boated launch launches launched launching harbour harbours".split())
WORD_QUERIES = ("boat launch", "boats launching harbour", "boating")
LIMIT = 10
Mode = Literal["vector", "keyword", "hybrid"]
MODES: tuple[Mode, ...] = ("vector", "keyword", "hybrid")
_AT_ONCE = 16
_WORDS = sorted({form for query in QUERIES for word in query.split() for form in (word, f"{word}s")})
"""The words of the queries, and another form of each, which the engine also matches."""
_FILLER = [f"word{number}" for number in range(400)]


@dataclass(frozen=True, slots=True)
class Item:
    """A text and its vector, shape (dimension,)."""

    text: str
    vector: Matrix


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The result of a query: ids with scores, best first, and the time taken."""

    hits: tuple[tuple[str, float], ...]
    milliseconds: float


def honest(queries: Matrix, number: int, seed: int = 1) -> list[Item]:
    """Make memories at all distances from the queries. Every query word occurs in many of them."""
    chance, noise = random.Random(seed), np.random.default_rng(seed)
    items: list[Item] = []
    for index in range(number):
        words = chance.choices(_WORDS, k=chance.randrange(2, 12)) + chance.choices(_FILLER, k=chance.randrange(20))
        chance.shuffle(words)
        distance = chance.uniform(0.3, 3.0)
        items.append(Item(" ".join(words), _near(queries[index % len(queries)], distance, noise)))
    return items


def hostile(queries: Matrix, number: int, seed: int = 2) -> list[Item]:
    """Make memories closer to the queries than any honest one, short and long, of the query words only."""
    chance, noise = random.Random(seed), np.random.default_rng(seed)
    return [
        Item(
            " ".join([QUERIES[index % len(QUERIES)]] * chance.choice((1, 1, 3, 8))),
            _near(queries[index % len(queries)], chance.uniform(0.0, 0.2), noise),
        )
        for index in range(number)
    ]


def wordy(vector: Matrix, number: int, seed: int = 4) -> list[Item]:
    """Make short memories of few words in several forms: each word occurs in far more memories than are read."""
    chance = random.Random(seed)
    return [
        Item(
            " ".join(chance.choices(FORMS, k=chance.randrange(1, 6)) + chance.choices(_FILLER, k=chance.randrange(20))),
            vector,
        )
        for _ in range(number)
    ]


def flood_of_words(vector: Matrix, number: int) -> list[Item]:
    """Make memories that change the frequency of words and the average length."""
    return [Item(" ".join(["boat launching"] * (40 if index % 2 else 1)), vector) for index in range(number)]


async def query_vectors(service: Service, request: RequestContext) -> Matrix:
    """The vectors of the queries, shape (queries, dimension)."""
    return await service.embeddings.embed(list(QUERIES), request.caller, wait=30.0)


async def fill(service: Service, request: RequestContext, items: Sequence[Item], visibility: Visibility) -> list[str]:
    """Store items with their vectors; return their ids in order."""
    limit = asyncio.Semaphore(_AT_ONCE)

    async def store(item: Item) -> str:
        async with limit:
            new = StoreArguments(
                content=item.text,
                memory_type=MemoryType.EMBEDDING,
                visibility=visibility,
                vector=item.vector.tolist(),
                wait=False,
            )
            return (await store_memory(service, request, new)).memory_id

    return await asyncio.gather(*map(store, items))


async def ask(
    service: Service, request: RequestContext, mode: Mode, queries: Sequence[str] = QUERIES
) -> list[SearchResult]:
    """Run all queries in one mode."""
    seen: list[SearchResult] = []
    for query in queries:
        started = time.perf_counter()
        answer = await semantic_search(service, request, SearchArguments(query=query, mode=mode, limit=LIMIT))
        took = (time.perf_counter() - started) * 1000
        seen.append(SearchResult(tuple((hit.memory.memory_id, hit.score) for hit in answer.hits), took))
    return seen


def recall(before: Sequence[SearchResult], after: Sequence[SearchResult]) -> float:
    """Share of the earlier results that are still found, averaged over the queries."""
    shares = [
        len({one for one, _ in old.hits} & {one for one, _ in new.hits}) / max(len(old.hits), 1)
        for old, new in zip(before, after, strict=True)
    ]
    return sum(shares) / len(shares)


def nearest(queries: Matrix, items: Sequence[Item], ids: list[str]) -> list[SearchResult]:
    """The true nearest memories of each query."""
    scores = queries @ np.stack([item.vector for item in items]).T
    order = np.argsort(-scores, axis=1)[:, :LIMIT]
    seen: list[SearchResult] = []
    for best, row in zip(order.tolist(), scores, strict=True):
        seen.append(SearchResult(tuple((str(ids[at]), float(row[at])) for at in best), 0.0))
    return seen


def _near(vector: Matrix, distance: float, noise: np.random.Generator) -> Matrix:
    step = noise.standard_normal(vector.shape[-1]).astype(np.float32)
    moved = vector + distance * step / np.linalg.norm(step)
    return (moved / np.linalg.norm(moved)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Row:
    """Figures of one mode at one stage. `true` compares with the true nearest, for vectors only."""

    stage: str
    mode: Mode
    kept: float
    true: float | None
    p50: float


async def measure(service: Service, namespace: str, pieces: int, console: Console) -> None:
    """Search alone, with a private flood, and with a public one."""
    alice, bob = (RequestContext(Caller(namespace, name)) for name in ("alice", "bob"))
    queries = await query_vectors(service, alice)
    items = honest(queries, pieces)
    ids = await fill(service, alice, items, Visibility.PRIVATE)
    truth = nearest(queries, items, ids)
    before = {mode: await ask(service, alice, mode) for mode in MODES}
    rows: list[Row] = []

    async def look(stage: str) -> None:
        for mode in MODES:
            seen = await ask(service, alice, mode)
            true = recall(truth, seen) if mode == "vector" else None
            p50 = percentile([one.milliseconds for one in seen], 0.5)
            rows.append(Row(stage, mode, recall(before[mode], seen), true, p50))

    await look("alone")
    await fill(service, bob, hostile(queries, pieces), Visibility.PRIVATE)
    await look("private flood")
    await fill(service, bob, hostile(queries, pieces // 10, seed=3), Visibility.PUBLIC)
    await look("public flood of a tenth")
    table = Table(title=f"{pieces} pieces of her own, as many hostile ones")
    for name in ("stage", "mode", "kept of before @10", "recall@10 of truly nearest", "search p50 ms"):
        table.add_column(name)
    for row in rows:
        true = "" if row.true is None else f"{row.true:.3f}"
        table.add_row(row.stage, row.mode, f"{row.kept:.3f}", true, f"{row.p50:.0f}")
    console.print(table)


async def _main(sizes: Sequence[int]) -> None:
    import tempfile
    from pathlib import Path

    console = Console(width=120)
    with tempfile.TemporaryDirectory(prefix="redis-memory-bench-") as folder:
        settings = Settings.load(data_dir=Path(folder), embed_wait_seconds=30.0)
        try:
            async with Service(settings).running() as service:
                for size in sizes:
                    await measure(service, f"flood-{size}", size, console)
        finally:
            stop(Path(folder))


def main() -> None:
    """Measure with this many memories."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pieces", nargs="*", type=int, default=[4000, 12_000])
    asyncio.run(_main(parser.parse_args().pieces))


if __name__ == "__main__":
    main()
