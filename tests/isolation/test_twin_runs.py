"""Private activity of others changes no byte of any answer to an agent."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest
import pytest_asyncio
from support.in_process import InProcess
from support.redis_users import SERVER
from support.stack import Stack, serving
from support.twins import SCRIPTS_OF_A_PAIR, SETTINGS, compare, embedded

from memory_server.engine.sidecars.vector_cache import Vectors

PAIRS = 8
LENGTH = 6


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def in_process(stack: Stack) -> AsyncGenerator[tuple[InProcess, Vectors]]:
    """A server with authentication, and the vectors of all texts."""
    async with serving(stack.redis.url_of(SERVER), **SETTINGS) as server:
        calls = InProcess.over(server)
        yield calls, await embedded(calls)


@pytest.mark.parametrize("pair", [0, 1, *(pytest.param(pair, marks=pytest.mark.long) for pair in range(2, PAIRS))])
async def test_answers_do_not_depend_on_others_private_activity(
    in_process: tuple[InProcess, Vectors], pair: int
) -> None:
    calls, vectors = in_process
    for number in range(SCRIPTS_OF_A_PAIR):
        difference = await compare(calls, f"twins-{pair}", pair * 1000 + number, LENGTH, vectors)
        assert difference is None, str(difference)
