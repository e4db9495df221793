"""A proxy between a process and Redis that can delay, lose, cut or hang connections."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

_BATCH_SIZE = 1 << 16


class NetworkFault(StrEnum):
    """How a proxy disturbs the traffic."""

    NONE = "none"
    DELAYS = "delays"
    LOST_REPLIES = "lost replies"
    """Commands arrive, but instead of replying the connection breaks."""
    HALF_OPEN = "half-open"
    """Open connections silently stop carrying data, and stay so afterwards."""
    REFUSED = "refused"
    """New connections are refused and open ones cut."""


@dataclass(slots=True, eq=False)
class _Link:
    near: asyncio.StreamWriter
    far: asyncio.StreamWriter
    dead: bool = False
    last: bool = False
    """The next reply is the last one."""

    def abort(self) -> None:
        for writer in (self.near, self.far):
            writer.transport.abort()


class Proxy:
    """Forwards a loopback port to a Unix socket."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._server: asyncio.Server | None = None
        self._links: set[_Link] = set()
        self.port = 0
        self.fault = NetworkFault.NONE
        self.delay = 0.0
        self.last_of = b""
        """After the answer to a command that contains this, all connections are refused."""

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()

    def cut(self) -> int:
        """Break all connections; return how many there were."""
        links = list(self._links)
        for link in links:
            link.abort()
        return len(links)

    def begin(self, fault: NetworkFault, delay: float = 0.0) -> None:
        """Start a fault."""
        self.fault, self.delay = fault, delay
        if fault is NetworkFault.HALF_OPEN:
            for link in self._links:
                link.dead = True
        if fault is NetworkFault.REFUSED:
            self.cut()

    def end(self) -> None:
        """End the fault. Half-open connections stay dead."""
        self.fault, self.delay = NetworkFault.NONE, 0.0

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.fault is NetworkFault.REFUSED:
            writer.transport.abort()
            return
        try:
            far_reader, far_writer = await asyncio.open_unix_connection(str(self._path))
        except OSError:
            writer.transport.abort()
            return
        link = _Link(writer, far_writer, dead=self.fault is NetworkFault.HALF_OPEN)
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
            while data := await reader.read(_BATCH_SIZE):
                if self.delay:
                    await asyncio.sleep(self.delay)
                if link.dead:
                    continue
                if is_reply and self.fault is NetworkFault.LOST_REPLIES:
                    return
                if not is_reply and self.last_of and self.last_of in data:
                    link.last = True
                writer.write(data)
                await writer.drain()
                if is_reply and link.last:
                    self.fault = NetworkFault.REFUSED
                    await asyncio.sleep(0.05)
                    self.cut()
