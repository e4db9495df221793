"""An answer that Redis cut short is refused, because its counts and order are wrong."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest
from support.stack import Agent, Stack

from memory_core.errors import StoreUnavailable
from memory_core.records.keys import Keys
from memory_core.redis_client import Client
from memory_server.index import queries
from memory_server.index.query_builder import Query, all_memories

MILLISECONDS = 1000
Look = Callable[[Client, Keys, Query], Awaitable[Any]]


class Hasty:
    """A client whose every answer carries the warning that Redis stopped early."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def execute_command(self, *arguments: Any) -> dict[bytes, Any]:
        """Run the command and add the warning."""
        answer = await self._client.execute_command(*arguments)
        return {**answer, b"warning": [b"Timeout limit was reached"]}


async def _changed(client: Client, keys: Keys, query: Query) -> Any:
    return await queries.by_change(client, keys, query, newest_first=True, offset=0, limit=10, timeout_ms=MILLISECONDS)


async def _with_content(client: Client, keys: Keys, query: Query) -> Any:
    return await queries.with_content(client, keys, query, offset=0, limit=10, timeout_ms=MILLISECONDS)


async def _indexed(client: Client, keys: Keys, query: Query) -> Any:
    return await queries.indexed(client, keys, [keys.memory("m")], MILLISECONDS)


async def _by_writer(client: Client, keys: Keys, query: Query) -> Any:
    return await queries.count_by_writer(client, keys, query, MILLISECONDS)


async def _by_day(client: Client, keys: Keys, query: Query) -> Any:
    return await queries.count_by_day(client, keys, query, MILLISECONDS)


@pytest.mark.parametrize("look", [_changed, _with_content, _indexed, _by_writer, _by_day])
async def test_answer_cut_short_by_redis_is_refused(look: Look, stack: Stack, namespace: str, alice: Agent) -> None:
    await alice.store("The ferry leaves at noon.")
    keys, query = Keys(namespace), all_memories()
    await look(stack.client, keys, query)
    with pytest.raises(StoreUnavailable, match="cut short: Timeout"):
        await look(cast(Client, Hasty(stack.client)), keys, query)
