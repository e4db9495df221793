"""hiredis packs commands exactly as redis-py does."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Connection
from redis.exceptions import DataError

from memory_core.store.connection import connect

COMMANDS = ("GET", "FT.SEARCH", "CONFIG GET", "CLIENT  SETINFO", b"XREVRANGE")
VALUES = st.one_of(st.text(), st.binary(), st.integers(), st.floats(allow_nan=False), st.binary().map(memoryview))


def packed(connection: Any, *command: Any) -> bytes:
    return b"".join(bytes(part) for part in connection.pack_command(*command))


@given(st.sampled_from(COMMANDS), st.lists(VALUES, max_size=6))
def test_commands_are_packed_as_redis_py_packs_them(name: str | bytes, arguments: list[Any]) -> None:
    ours = connect("redis://127.0.0.1:1").connection_pool.make_connection()
    assert packed(ours, name, *arguments) == packed(Connection(), name, *arguments)
    joined = b"".join(bytes(part) for part in ours.pack_commands([(name, *arguments)] * 2))
    assert joined == packed(ours, name, *arguments) * 2


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1", "rediss://127.0.0.1:1", "unix:///nowhere.sock"])
def test_every_kind_of_connection_packs_with_hiredis(url: str) -> None:
    connection = connect(url).connection_pool.make_connection()
    assert packed(connection, "GET", "a") == b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n"
    assert len(connection.pack_command("SET", "a", b"x" * 100_000)) == 1


@pytest.mark.parametrize("value", [None, True, [1], {"a": 1}, object()])
def test_unsupported_values_are_refused(value: object) -> None:
    connection = connect("redis://127.0.0.1:1").connection_pool.make_connection()
    with pytest.raises(DataError, match="GET"):
        connection.pack_command("GET", value)
