"""What others keep to themselves changes no byte of what an agent is told, whatever it calls."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest
import pytest_asyncio
from support.in_process import InProcess
from support.redis_users import SERVER
from support.stack import Stack, serving
from support.twins import SCRIPTS_OF_A_PAIR, SETTINGS, compare, embedded

from memory_server.engine.vector_cache import Vectors

PAIRS = 8
LENGTH = 6


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def place(stack: Stack) -> AsyncGenerator[tuple[InProcess, Vectors]]:
    """A server with authentication, and the vectors of all texts."""
    async with serving(stack.redis.url_of(SERVER), **SETTINGS) as server:
        inside = InProcess.over(server)
        yield inside, await embedded(inside)


@pytest.mark.parametrize("pair", [0, 1, *(pytest.param(pair, marks=pytest.mark.long) for pair in range(2, PAIRS))])
async def test_an_agents_answers_are_the_same_without_others_private_doings(
    place: tuple[InProcess, Vectors], pair: int
) -> None:
    inside, vectors = place
    for number in range(SCRIPTS_OF_A_PAIR):
        difference = await compare(inside, f"twins-{pair}", pair * 1000 + number, LENGTH, vectors)
        assert difference is None, str(difference)
