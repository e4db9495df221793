"""Request bodies are bounded in bytes, time and JSON values before a request is served."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from memory_core.settings.groups import LimitSettings
from memory_server.http import bodies
from memory_server.http.bodies import BodyLimits

LIMITS = LimitSettings(body_bytes=100_000, request_bytes=1_000_000)


@dataclass(slots=True)
class Client:
    """One request to a server that answers 200 with any complete body."""

    limits: BodyLimits
    path: str = "/mcp"
    address: str = "192.0.2.1"
    length: int | None = None
    status: int = 0
    reads: int = 0
    messages: asyncio.Queue[Message] = field(default_factory=asyncio.Queue[Message])

    def send(self, body: bytes, *, more: bool = False) -> None:
        """Send a part of the body."""
        self.messages.put_nowait({"type": "http.request", "body": body, "more_body": more})

    async def run(self) -> int:
        """Return the status of the answer."""
        headers = (
            (b"transfer-encoding", b"chunked") if self.length is None else (b"content-length", b"%d" % self.length)
        )
        scope: dict[str, Any] = {"type": "http", "method": "POST", "path": self.path}
        await self.limits(scope | {"headers": [headers], "client": (self.address, 1)}, self._receive, self._note)
        return self.status

    async def _receive(self) -> Message:
        self.reads += 1
        return await self.messages.get()

    async def _note(self, message: Message) -> None:
        self.status = message.get("status", self.status)


async def _answer(scope: Scope, receive: Receive, send: Send) -> None:
    message = await receive()
    assert not message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": message["body"]})


@pytest.fixture
def limits() -> BodyLimits:
    """The limits of a server."""
    return BodyLimits(_answer, LIMITS)


async def _waiting(client: Client) -> asyncio.Task[int]:
    task = asyncio.create_task(client.run())
    while not client.messages.empty() or not client.reads:
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    return task


async def test_complete_body_is_served(limits: BodyLimits) -> None:
    client = Client(limits, length=4)
    client.send(b"{}", more=True)
    client.send(b"  ")
    assert await client.run() == 200


@pytest.mark.parametrize(("path", "length"), [("/api/login", 20_001), ("/", 20_001), ("/api/call/x", 100_001)])
async def test_declared_length_beyond_the_limit_is_refused_unread(limits: BodyLimits, path: str, length: int) -> None:
    client = Client(limits, path=path, length=length)
    assert await client.run() == 413
    assert client.reads == 0


@pytest.mark.parametrize(("path", "most"), [("/api/login", 20_000), ("/mcp", 100_000)])
async def test_body_of_unknown_length_is_cut_off_at_the_limit(limits: BodyLimits, path: str, most: int) -> None:
    client = Client(limits, path=path)
    for _ in range(most // 1000 + 5):
        client.send(b" " * 1000, more=True)
    assert await client.run() == 413
    assert client.reads == most // 1000 + 1


@pytest.mark.parametrize("unit", [b"[],", b'{"a":1},', b'"",', b"1,"])
async def test_body_of_too_many_values_is_refused_unparsed(limits: BodyLimits, unit: bytes) -> None:
    big = BodyLimits(_answer, LimitSettings())
    client = Client(big)
    client.send(b"[" + unit * 100_000 + b"1]")
    assert await client.run() == 413


async def test_separators_within_a_text_are_no_values() -> None:
    client = Client(BodyLimits(_answer, LimitSettings()))
    client.send(b'{"content":"' + rb"1,2:[{\",\\" * 100_000 + b'"}')
    assert await client.run() == 200


async def test_late_body_is_answered_with_408(limits: BodyLimits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "GRACE_SECONDS", 0.05)
    client = Client(limits, path="/api/login", length=10)
    client.send(b"{", more=True)
    assert await client.run() == 408


async def test_oldest_body_of_an_address_gives_way(limits: BodyLimits) -> None:
    clients = [Client(limits, length=90_000) for _ in range(4)]
    tasks: list[asyncio.Task[int]] = []
    for client in clients:
        client.send(b" " * 80_000, more=True)
        tasks.append(await _waiting(client))
    assert [await tasks[0], await tasks[1]] == [503, 503]
    for client in clients[2:]:
        client.send(b" " * 10_000)
    assert [await tasks[2], await tasks[3]] == [200, 200]


async def test_other_addresses_keep_their_room(limits: BodyLimits) -> None:
    victim = Client(limits, address="192.0.2.2", length=90_000)
    victim.send(b" " * 80_000, more=True)
    served = await _waiting(victim)
    floods: list[asyncio.Task[int]] = []
    for number in range(40):
        client = Client(limits, address=f"198.51.100.{number % 8}", length=90_000)
        client.send(b" " * 80_000, more=True)
        floods.append(await _waiting(client))
    victim.send(b" " * 10_000)
    assert await served == 200
    for task in floods:
        task.cancel()
    await asyncio.gather(*floods, return_exceptions=True)


async def test_all_addresses_of_an_ipv6_network_share_their_room(limits: BodyLimits) -> None:
    clients = [Client(limits, address=f"2001:db8::{number}", length=90_000) for number in range(1, 4)]
    tasks: list[asyncio.Task[int]] = []
    for client in clients:
        client.send(b" " * 89_000, more=True)
        tasks.append(await _waiting(client))
    assert await tasks[0] == 503
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
