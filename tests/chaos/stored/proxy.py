"""Stands between a process and Redis, so that what travels can be delayed, lost, cut off or left hanging."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

_AT_ONCE = 1 << 16


class Trouble(StrEnum):
    """What a proxy does to what travels."""

    NONE = "none"
    DELAYS = "delays"
    LOST_REPLIES = "lost replies"
    """Commands arrive, their replies do not: the connection breaks instead."""
    HALF_OPEN = "half-open"
    """Nothing arrives any more on what is open, and nobody is told; it stays so afterwards."""
    REFUSED = "refused"
    """Nobody gets through, and whoever is through is cut off."""


@dataclass(slots=True, eq=False)
class _Link:
    near: asyncio.StreamWriter
    far: asyncio.StreamWriter
    dead: bool = False
    last: bool = False
    """The next reply is the last that anybody gets."""

    def abort(self) -> None:
        for writer in (self.near, self.far):
            writer.transport.abort()


class Proxy:
    """Listens on a port of the loopback and passes on to a Unix socket."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._server: asyncio.Server | None = None
        self._links: set[_Link] = set()
        self.port = 0
        self.trouble = Trouble.NONE
        self.delay = 0.0
        self.last_of = b""
        """When a command with this in it has been answered, nobody gets through any more."""

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()

    def cut(self) -> int:
        """Break all connections; give how many there were."""
        links = list(self._links)
        for link in links:
            link.abort()
        return len(links)

    def begin(self, trouble: Trouble, delay: float = 0.0) -> None:
        """Let trouble begin."""
        self.trouble, self.delay = trouble, delay
        if trouble is Trouble.HALF_OPEN:
            for link in self._links:
                link.dead = True
        if trouble is Trouble.REFUSED:
            self.cut()

    def end(self) -> None:
        """Let it end; what is half-open stays dead."""
        self.trouble, self.delay = Trouble.NONE, 0.0

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.trouble is Trouble.REFUSED:
            writer.transport.abort()
            return
        try:
            far_reader, far_writer = await asyncio.open_unix_connection(str(self._path))
        except OSError:
            writer.transport.abort()
            return
        link = _Link(writer, far_writer, dead=self.trouble is Trouble.HALF_OPEN)
        self._links.add(link)
        there = asyncio.create_task(self._pass(link, reader, far_writer, is_reply=False))
        back = asyncio.create_task(self._pass(link, far_reader, writer, is_reply=True))
        try:
            await asyncio.wait({there, back}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            there.cancel()
            back.cancel()
            self._links.discard(link)
            link.abort()

    async def _pass(
        self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_reply: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_AT_ONCE):
                if self.delay:
                    await asyncio.sleep(self.delay)
                if link.dead:
                    continue
                if is_reply and self.trouble is Trouble.LOST_REPLIES:
                    return
                if not is_reply and self.last_of and self.last_of in data:
                    link.last = True
                writer.write(data)
                await writer.drain()
                if is_reply and link.last:
                    self.trouble = Trouble.REFUSED
                    await asyncio.sleep(0.05)
                    self.cut()
