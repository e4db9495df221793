"""Long contents and the chunks that Redis holds of them."""

from __future__ import annotations

import random

from memory_core.records.keys import Keys
from support.stack import Agent, Stack

WORDS = "harbour lantern gravel meadow violet copper winter saddle orchard thunder velvet candle ribbon marble".split()


def prose(sentences: int, seed: int = 7) -> str:
    """Generate paragraphs without meaning."""
    chance = random.Random(seed)
    lines = (f"{' '.join(chance.choices(WORDS, k=9)).capitalize()}." for _ in range(sentences))
    return "".join(f"{line}{chr(10) * 2 if number % 8 == 7 else ' '}" for number, line in enumerate(lines))


FACT = "The safe in the cellar opens with the number 4711."


async def settled(agent: Agent) -> bool:
    """Whether every text has its vector."""
    return (await agent.call("memory_stats"))["vector_backlog"] == 0


async def pieces_in_redis(stack: Stack, namespace: str) -> set[str]:
    """Return `<id>:<number>` of all chunks in Redis."""
    prefix = Keys(namespace).chunk_prefix
    return {key.decode()[len(prefix) :] async for key in stack.client.scan_iter(match=f"{prefix}*", count=1000)}
