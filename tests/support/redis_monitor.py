"""Captures all commands and values of a Redis, so that a test can search them for forbidden content."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from memory_core.redis_client import Client
from support.embedder_fixtures import wait_until


class Monitor:
    """Everything sent to a Redis, captured with MONITOR."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.received = bytearray()

    async def __aenter__(self) -> Monitor:
        self._reader, self._writer = await asyncio.open_unix_connection(str(self._path), limit=1 << 26)
        self._writer.write(b"MONITOR\r\n")
        assert await self._reader.readline() == b"+OK\r\n"
        self._listening = asyncio.create_task(self._listen())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listening.cancel()
        self._writer.close()

    async def _listen(self) -> None:
        while line := await self._reader.readline():
            self.received += (
                line.decode("latin-1").encode("latin-1").decode("unicode_escape").encode("latin-1", "replace")
            )

    async def until(self, marker: bytes, client: Client) -> None:
        """Wait until everything sent before this call is captured."""
        await client.echo(marker)

        async def marker_received() -> bool:
            return marker in self.received

        await wait_until(marker_received)


async def all_values(client: Client) -> bytes:
    """Return all values of a Redis as bytes."""
    found: list[Any] = []
    commands: dict[bytes, tuple[Any, ...]] = {
        b"string": (client.get,),
        b"hash": (client.hgetall,),
        b"stream": (client.xrange,),
        b"set": (client.smembers,),
        b"list": (client.lrange, 0, -1),
        b"zset": (client.zrange, 0, -1),
    }
    async for key in client.scan_iter(count=1000):
        kind = await client.type(key)
        if kind == b"none":  # expired in the meantime
            continue
        read, *rest = commands[kind]
        found.append((key, await read(key, *rest)))
    return b"".join(_flat(found))


def _flat(value: Any) -> list[bytes]:
    if isinstance(value, bytes):
        return [value]
    if isinstance(value, dict):
        return [part for pair in value.items() for item in pair for part in _flat(item)]
    if isinstance(value, list | tuple | set):
        return [part for item in value for part in _flat(item)]
    return []
