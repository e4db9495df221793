"""The final reads of a run: with nothing pending, every owner reads everything back and searches a sample of it."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import defaultdict

from chaos.history import Call, Json, Recorder, Refusal
from chaos.progress import settle
from chaos.tool_clients import RemoteTools, remote
from memory_core.errors import OutcomeUnknown
from memory_core.records.times import parse_time

from .evidence import operations
from .load import NAMESPACE, trimmed

_log = logging.getLogger(__name__)
_ANSWER_SECONDS = 120.0
_BATCH_SIZE = 200
_PAGES = 10_000


class StillRefused(Exception):
    """A call is still refused although nothing is pending."""


async def read_everything(
    address: str, recorder: Recorder, calls: list[Call], sample: int, chance: random.Random, forgotten: list[str]
) -> None:
    """Let each agent retrieve and list everything it stored, and search some memories by their full content."""
    stored: dict[str, dict[str, Json]] = defaultdict(dict)
    for op in operations(calls):
        if op.name == "store_memory":
            stored[op.agent] |= {op.answer["memory_id"]: {}} if op.is_ok else {}
    for agent, ids in sorted(stored.items()):
        async with remote(address, NAMESPACE, agent) as tools:
            found = await _retrieve(tools, agent, recorder, [*ids, *forgotten])
            await _list(tools, agent, recorder)
            living = [memory for memory in found if _lives_on(memory)]
            for memory in chance.sample(living, k=min(sample // len(stored), len(living))):
                await _search(tools, agent, recorder, memory)


def _lives_on(memory: Json) -> bool:
    """Whether a memory expires no sooner than in a day."""
    expires = memory.get("expires_at")
    return expires is None or parse_time(expires, "expires_at") > time.time() + 86_400


async def _retrieve(tools: RemoteTools, agent: str, recorder: Recorder, ids: list[str]) -> list[Json]:
    """Retrieve all. Repeats what is refused for the moment."""
    found: list[Json] = []
    left = ids

    async def refused() -> list[str]:
        nonlocal left
        asked, left = left, []
        for start in range(0, len(asked), _BATCH_SIZE):
            batch = asked[start : start + _BATCH_SIZE]
            operations = [{"op": "retrieve_memory", "memory_id": one} for one in batch]
            arguments = {"operations": operations, "max_tokens": 0}
            answer = await _call(tools, agent, recorder, "batch_operations", arguments)
            for memory_id, result in zip(batch, answer["results"], strict=True):
                if result["ok"]:
                    found.append(result["result"])
                elif result["error"]["code"] != "not_found":
                    left.append(memory_id)
        return [f"retrieve_memory of {len(left)} memories"] if left else []

    if still := await settle(refused):
        raise StillRefused(", ".join(still))
    return found


async def _list(tools: RemoteTools, agent: str, recorder: Recorder) -> None:
    cursor: str | None = None
    for _ in range(_PAGES):
        arguments = {"agent_id": agent, "limit": 100, "include_archive": True} | ({"cursor": cursor} if cursor else {})
        answer = await _call(tools, agent, recorder, "get_agent_memories", arguments)
        cursor = answer["next_cursor"]
        if not cursor:
            return


async def _search(tools: RemoteTools, agent: str, recorder: Recorder, memory: Json) -> None:
    """Search exactly, by the full content of a memory that has one vector."""
    if memory.get("pieces", 1) > 1:
        return
    arguments = {"query": memory["content"], "mode": "vector", "limit": 10, "rerank": True, "include_archive": True}
    extra = {"expected": [memory["memory_id"]], "exact": True}
    await _call(tools, agent, recorder, "semantic_search", arguments, extra)


async def _call(
    tools: RemoteTools, agent: str, recorder: Recorder, op: str, arguments: Json, extra: Json | None = None
) -> Json:
    """Call, with retries for a while: a busy machine may be slow for a time.

    Raises:
        StillRefused: every call was refused or unanswered.
    """
    answers: list[Json] = []

    async def act() -> Json:
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                return trimmed(op, await tools(op, agent, **arguments))
        except TimeoutError as error:
            raise OutcomeUnknown("no answer in time") from error

    async def refused() -> list[str]:
        try:
            answers.append(await recorder.call(op, agent, arguments | (extra or {}), act))
        except Refusal as refusal:
            _log.info("final %s: %s", op, refusal.code)
            return [f"{op}: {refusal.code}"]
        return []

    if still := await settle(refused):
        raise StillRefused(", ".join(still))
    return answers[0]
