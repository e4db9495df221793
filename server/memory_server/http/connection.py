"""Limits what a client may send before it is served: connections, and bytes, number and time of header fields.

uvicorn's own limit of header bytes works with h11 only, which is several times slower than httptools.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from memory_core.settings.settings import Settings
from memory_server.engine.rate_limits import Buckets
from memory_server.engine.shares import Shares
from memory_server.http.bodies import address_of, is_own_machine

HEAD_BYTES = 65_536
"""Bytes of a request line and its headers, and of the trailers of a chunked body."""
HEAD_FIELDS = 200
HEAD_SECONDS = 10.0
"""Time from the first byte of a request, or from the connection, to the end of its headers."""
ADDRESS_CONNECTIONS = 1000
"""Open connections of one address."""
BYTES_PER_SECOND, BYTES_AT_ONCE = 8 << 20, 32 << 20
"""What one address may send. The connections of an address that sends more are read more slowly."""
_SHARED_FACTOR, _LONGEST_PAUSE = 10, 5.0
_LEAST = 1024
"""Connections, however few requests are allowed at a time."""
_MOST_FILES = 8192
_OTHER_FILES = 200
"""Open files that the process needs for other things than connections."""
_EXCESS = f"The headers have more than {HEAD_BYTES} bytes or {HEAD_FIELDS} fields."


class Connections:
    """Counts the open connections of each address, and the bytes that it sends.

    The agents of this machine share one address, and so do all clients of a proxy. These may have half of all
    connections.
    """

    def __init__(self, settings: Settings) -> None:
        files = os.sysconf("SC_OPEN_MAX") if hasattr(os, "sysconf") else _MOST_FILES
        self._shares = Shares(min(max(2 * settings.limits.requests, _LEAST), max(files - _OTHER_FILES, files // 2)))
        self._behind_proxy = settings.behind_proxy
        self._bytes = Buckets(BYTES_PER_SECOND, BYTES_AT_ONCE)

    def take(self, client: tuple[str, int] | None) -> bool:
        """Count a connection; False if its address has too many."""
        holder = address_of({"client": client})
        if not self._is_shared(client) and self._shares.held(holder) >= ADDRESS_CONNECTIONS:
            return False
        return self._shares.take(holder)

    def received(self, client: tuple[str, int] | None, size: int) -> float:
        """Count bytes of an address. Returns the seconds until the connection may read on."""
        amount = size / _SHARED_FACTOR if self._is_shared(client) else size
        return self._bytes.spend(address_of({"client": client}), amount)

    def _is_shared(self, client: tuple[str, int] | None) -> bool:
        return self._behind_proxy or is_own_machine({"client": client})

    def give_back(self, client: tuple[str, int] | None) -> None:
        self._shares.give_back(address_of({"client": client}))


class _SlowedFlow(FlowControl):
    """Does not read for a while, even if the request's reader asks for more."""

    _resuming: asyncio.TimerHandle | None = None

    def slow_down(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self.pause_reading()
        self.end()
        self._resuming = loop.call_later(seconds, self._resume)

    def resume_reading(self) -> None:
        if self._resuming is None:
            super().resume_reading()

    def end(self) -> None:
        if self._resuming is not None:
            self._resuming.cancel()
            self._resuming = None

    def _resume(self) -> None:
        self._resuming = None
        self.resume_reading()


class BoundedConnection(HttpToolsProtocol):
    """Closes a connection whose headers are too long or too slow.

    A request that is answered before it is complete must also be completed in time.
    """

    def __init__(self, *args: Any, opened: Connections, **options: Any) -> None:
        super().__init__(*args, **options)
        self._open, self._is_counted = opened, False
        self._deadline: asyncio.TimerHandle | None = None
        self._in_message = self._is_excess = False
        self._unparsed = self._kept = self._fields = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # pyright: ignore[reportArgumentType]
        self.flow = _SlowedFlow(self.transport)
        self._is_counted = self._open.take(self.client)
        if self._is_counted:
            self._expect()
        else:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._met()
        if isinstance(self.flow, _SlowedFlow):
            self.flow.end()
        if self._is_counted:
            self._is_counted = False
            self._open.give_back(self.client)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self._in_message:
            self._expect()
        self._unparsed += len(data)
        super().data_received(data)
        if (pause := self._open.received(self.client, len(data))) and isinstance(self.flow, _SlowedFlow):
            self.flow.slow_down(self.loop, min(pause, _LONGEST_PAUSE))
        if self._unparsed > HEAD_BYTES and not self.transport.is_closing():
            self._is_excess = True
            self.send_400_response(_EXCESS)

    def send_400_response(self, msg: str) -> None:
        super().send_400_response(_EXCESS if self._is_excess else msg)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_message = True
        self._kept = self._fields = 0
        self._expect()

    def on_url(self, url: bytes) -> None:
        self._keep(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields += 1
        self._keep(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._met()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unparsed = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_message = False
        self._met()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._in_message:
            self._expect()

    def _keep(self, size: int) -> None:
        """Count what the parser has found. An error here ends the request."""
        self._kept += size
        if self._kept > HEAD_BYTES or self._fields > HEAD_FIELDS:
            self._is_excess = True
            raise ValueError(_EXCESS)

    def _expect(self) -> None:
        """Begin to wait for the client, unless that is under way."""
        if self._deadline is None:
            self._deadline = self.loop.call_later(HEAD_SECONDS, self._expired)

    def _met(self) -> None:
        self._unparsed = 0
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _expired(self) -> None:
        self._deadline = None
        if self.cycle is not None and not self.cycle.response_complete:  # pyright: ignore[reportUnnecessaryComparison]
            self._expect()  # the answer to an earlier request is under way
        elif not self.transport.is_closing():
            self.transport.close()
