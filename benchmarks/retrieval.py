"""Stores real conversations through MCP, one memory per turn, and asks their questions: quality and speed."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from mcp import Client
from rich.console import Console
from rich.progress import Progress

from benchmarks import results
from benchmarks.evalset import Conversation, load
from benchmarks.mcp_client import call
from benchmarks.metrics import MRR_DEPTH, Quality, judge, mean, percentile
from benchmarks.serving import Product, product, service_on
from memory_server.contract.arguments import SearchArguments
from memory_server.engine.request_context import Caller, RequestContext
from memory_server.search.ranking import IN_CONTEXT, RankingWeights
from memory_server.search.search import semantic_search

MODES = ("vector", "keyword", "hybrid")
WITHOUT = {
    "names": replace(IN_CONTEXT, source=0.0),
    "times": replace(IN_CONTEXT, time=0.0),
    "surroundings": replace(IN_CONTEXT, around=(), question=0.0),
    "questions": replace(IN_CONTEXT, question=0.0),
    "brevity": replace(IN_CONTEXT, brevity=0.0),
    "all of these": replace(IN_CONTEXT, source=0.0, time=0.0, around=(), question=0.0, brevity=0.0),
}
"""Features of a hybrid search beyond mixing cosine and BM25, with the weights that turn each off."""
ADVERSARIAL = {"locomo": "5"}
"""Category of questions without an answer in the text; shown separately."""


@dataclass(slots=True)
class Outcome:
    """Figures of one mode. Latencies in milliseconds, one client, uncached queries."""

    mode: str
    quality: list[Quality] = field(default_factory=list[Quality])
    adversarial: list[Quality] = field(default_factory=list[Quality])
    latencies: list[float] = field(default_factory=list[float])

    def row(self) -> dict[str, Any]:
        """The figures for the table and the JSON."""
        return {
            "mode": self.mode,
            "questions": len(self.quality),
            **{name: round(value, 3) for name, value in asdict(mean(self.quality)).items()},
            "adversarial_recall_at_10": round(mean(self.adversarial).recall_at_10, 3) if self.adversarial else None,
            "search_p50_ms": round(percentile(self.latencies, 0.5), 1),
            "search_p95_ms": round(percentile(self.latencies, 0.95), 1),
        }


Ask = Callable[[str], Awaitable[list[str]]]
"""Searches for a question; returns the ids of the memories found, best first."""


def namespace(conversation: Conversation) -> str:
    """A separate namespace per conversation."""
    return f"conv-{conversation.id.lower().replace('_', '-')}"


def namespace_url(url: str, conversation: Conversation) -> str:
    """The MCP address of a conversation's namespace."""
    return f"{url}?agent=bench&namespace={namespace(conversation)}"


async def store(url: str, conversation: Conversation, progress: Progress, task: Any) -> dict[str, str]:
    """Store a conversation in order; return the set's ids by the ids of the stored memories."""
    ids: dict[str, str] = {}
    async with Client(namespace_url(url, conversation)) as client:
        for memory in conversation.memories:
            fields = {"source": memory["speaker"], "occurred_at": memory["time"], "context": memory["session"]}
            arguments = {name: value for name, value in fields.items() if value}
            answer = await call(
                client,
                "store_memory",
                content=memory["text"],
                memory_type="conversation",
                priority="high",
                wait=False,
                **arguments,
            )
            ids[answer["memory_id"]] = memory["id"]
            progress.advance(task)
        while (await call(client, "memory_stats"))["vector_backlog"]:
            await asyncio.sleep(0.1)
    return ids


async def ask(conversation: Conversation, ids: dict[str, str], outcome: Outcome, skipped: str, search: Ask) -> None:
    """Ask a conversation's questions one after another."""
    for question in conversation.questions:
        started = time.perf_counter()
        found = await search(question.text)
        outcome.latencies.append((time.perf_counter() - started) * 1000)
        target = outcome.adversarial if question.category == skipped else outcome.quality
        target.append(judge([ids[memory_id] for memory_id in found], question.evidence))


async def ask_over_mcp(
    url: str, conversation: Conversation, ids: dict[str, str], outcome: Outcome, skipped: str
) -> None:
    """Ask as users do."""
    async with Client(namespace_url(url, conversation)) as client:
        await call(client, "memory_stats")

        async def search(query: str) -> list[str]:
            answer = await call(client, "semantic_search", query=query, mode=outcome.mode, limit=MRR_DEPTH)
            return [hit["memory"]["memory_id"] for hit in answer["hits"]]

        await ask(conversation, ids, outcome, skipped, search)


async def ablate(
    running: Product, conversations: list[Conversation], ids: list[dict[str, str]], skipped: str
) -> list[Outcome]:
    """Ask on the same store within this process, leaving out one feature at a time."""
    outcomes = [Outcome(f"without {name}") for name in WITHOUT]
    async with service_on(running) as service:
        for outcome, weights in zip(outcomes, WITHOUT.values(), strict=True):
            for conversation, known in zip(conversations, ids, strict=True):
                caller = Caller(namespace(conversation), "bench")

                async def search(query: str, caller: Caller = caller, weights: RankingWeights = weights) -> list[str]:
                    args = SearchArguments(query=query, limit=MRR_DEPTH, max_tokens=0)
                    answer = await semantic_search(service, RequestContext(caller), args, weights=weights)
                    assert not answer.partial, answer.reason
                    return [hit.memory.memory_id for hit in answer.hits]

                answerable = [question for question in conversation.questions if question.category != skipped]
                await ask(replace(conversation, questions=tuple(answerable)), known, outcome, skipped, search)
    return outcomes


async def measure(running: Product, name: str, conversations: list[Conversation], console: Console) -> dict[str, Any]:
    """Store everything with at most four clients, then ask in each mode."""
    total = sum(len(conversation.memories) for conversation in conversations)
    skipped = ADVERSARIAL.get(name, "")
    with Progress(console=console) as progress:
        task = progress.add_task(f"storing {name}", total=total)
        started = time.perf_counter()
        limit = asyncio.Semaphore(4)

        async def stored(conversation: Conversation) -> dict[str, str]:
            async with limit:
                return await store(running.url, conversation, progress, task)

        ids = await asyncio.gather(*map(stored, conversations))
        seconds = time.perf_counter() - started
        outcomes = [Outcome(mode) for mode in MODES]
        for outcome in outcomes:
            task = progress.add_task(f"asking, {outcome.mode}", total=len(conversations))
            for conversation, known in zip(conversations, ids, strict=True):
                await ask_over_mcp(running.url, conversation, known, outcome, skipped)
                progress.advance(task)
            console.print(outcome.row())
    outcomes += await ablate(running, conversations, ids, skipped)
    return {
        "set": name,
        "memories": total,
        "stores_per_second_until_searchable": round(total / seconds, 1),
        "modes": [outcome.row() for outcome in outcomes],
    }


def main() -> None:
    """Measure the sets named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sets", nargs="*", default=["locomo"], help="locomo realtalk cranfield beam100k")
    names: list[str] = parser.parse_args().sets
    console = Console(width=160)
    loaded = [(name, load(name)) for name in names]
    with product() as running:
        for name, conversations in loaded:
            report = asyncio.run(measure(running, name, conversations, console))
            rate = report["stores_per_second_until_searchable"]
            results.save(f"retrieval-{name}", report)
            results.show(
                f"{name}: {report['memories']} memories, {rate} stores/s until found by vector", report["modes"]
            )


if __name__ == "__main__":
    main()
