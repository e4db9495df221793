"""The last look at a run: when all is at rest, every owner reads everything back and searches for a sample of it."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import defaultdict

from chaos.history import Call, Json, Recorder, Refusal
from chaos.surfaces import Remote, remote
from memory_core.records.times import parse_time

from .evidence import operations
from .load import NAMESPACE, trimmed

_log = logging.getLogger(__name__)
PATIENCE = 40.0
_AT_ONCE = 200
_PAGES = 10_000


class StillRefused(Exception):
    """With all at rest something is refused."""


async def look_at_all(
    address: str, recorder: Recorder, calls: list[Call], sample: int, chance: random.Random, forgotten: list[str]
) -> None:
    """Have each agent retrieve and list all it ever stored, and search for some of it by all that it says."""
    stored: dict[str, dict[str, Json]] = defaultdict(dict)
    for op in operations(calls):
        if op.name == "store_memory":
            stored[op.agent] |= {op.answer["memory_id"]: {}} if op.is_ok else {}
    for agent, ids in sorted(stored.items()):
        async with remote(address, NAMESPACE, agent) as surface:
            found = await _retrieve(surface, agent, recorder, [*ids, *forgotten])
            await _list(surface, agent, recorder)
            living = [memory for memory in found if _lives_on(memory)]
            for memory in chance.sample(living, k=min(sample // len(stored), len(living))):
                await _search(surface, agent, recorder, memory)


def _lives_on(memory: Json) -> bool:
    """Whether a memory will not expire while it is looked for."""
    expires = memory.get("expires_at")
    return expires is None or parse_time(expires, "expires_at") > time.time() + 86_400


async def _retrieve(surface: Remote, agent: str, recorder: Recorder, ids: list[str]) -> list[Json]:
    """Retrieve all; what is refused for the moment is asked for again."""
    found: list[Json] = []
    left, deadline = ids, time.monotonic() + PATIENCE + len(ids) / 50
    while left:
        if time.monotonic() > deadline:
            raise StillRefused(f"retrieve_memory of {len(left)} memories")
        some, left = left[:_AT_ONCE], left[_AT_ONCE:]
        operations = [{"op": "retrieve_memory", "memory_id": one} for one in some]
        answer = await _call(surface, agent, recorder, "batch_operations", {"operations": operations})
        for memory_id, result in zip(some, answer["results"], strict=True):
            if result["ok"]:
                found.append(result["result"])
            elif result["error"]["code"] != "not_found":
                left.append(memory_id)
    return found


async def _list(surface: Remote, agent: str, recorder: Recorder) -> None:
    cursor: str | None = None
    for _ in range(_PAGES):
        arguments = {"agent_id": agent, "limit": 100, "include_archive": True} | ({"cursor": cursor} if cursor else {})
        answer = await _call(surface, agent, recorder, "get_agent_memories", arguments)
        cursor = answer["next_cursor"]
        if not cursor:
            return


async def _search(surface: Remote, agent: str, recorder: Recorder, memory: Json) -> None:
    """Search exactly, by the whole of a memory that one vector stands for."""
    if memory.get("pieces", 1) > 1:
        return
    arguments = {"query": memory["content"], "mode": "vector", "limit": 10, "rerank": True, "include_archive": True}
    noted = {"expected": [memory["memory_id"]], "exact": True}
    await _call(surface, agent, recorder, "semantic_search", arguments, noted)


async def _call(
    surface: Remote, agent: str, recorder: Recorder, op: str, arguments: Json, noted: Json | None = None
) -> Json:
    """Call, for a while again and again if need be: a busy machine may be slow, but must not stay so.

    Raises:
        StillRefused: it is refused for too long.
    """

    async def act() -> Json:
        return trimmed(op, await surface(op, agent, **arguments))

    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return await recorder.call(op, agent, arguments | (noted or {}), act)
        except Refusal as refusal:
            _log.info("%s at rest: %s", op, refusal.code)
            if time.monotonic() > deadline:
                raise StillRefused(f"{op}: {refusal.code}") from refusal
        await asyncio.sleep(0.2)
