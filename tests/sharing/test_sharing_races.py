"""Concurrent grants, revokes and reads: no answer after a revoke, and no call after an expiry, shows the memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import partial

import pytest
from support.sharing_helpers import refusal, register, share
from support.stack import Agent, Server, Stack

from memory_core.errors import NotFound
from memory_core.records.keys import Keys
from memory_server.contract.arguments import ListArguments, RetrieveArguments, SearchArguments, SimilarArguments
from memory_server.contract.sharing import ShareArguments, SharedContextArguments
from memory_server.engine.principals import resolve
from memory_server.engine.request_context import Caller, RequestContext
from memory_server.index import loader, queries
from memory_server.index import query_builder as build
from memory_server.index.filters import ResolvedFilters
from memory_server.memories import get, update
from memory_server.search import search
from memory_server.security.open_records import load_readable
from memory_server.service import Service
from memory_server.sharing import grants, shared_context

WORDS = "treasure lighthouse"
ROUNDS_SECONDS = 3.0
Read = Callable[[Service, RequestContext, str], Awaitable[bool]]


@dataclass(frozen=True)
class Period:
    """The time between two recorded moments."""

    start: float
    end: float

    def overlaps(self, other: Period) -> bool:
        """Whether two periods overlap."""
        return self.start <= other.end and other.start <= self.end


@dataclass
class History:
    """Periods in which a grant may have been active, and what each read showed between call and answer."""

    granted: list[Period] = field(default_factory=list[Period])
    shown: list[Period] = field(default_factory=list[Period])
    hidden: list[Period] = field(default_factory=list[Period])

    def check_answers(self) -> None:
        """Every answer that shows the memory arrived while a grant was active or being revoked."""
        for period in self.shown:
            answered = Period(period.end, period.end)
            assert any(answered.overlaps(granted) for granted in self.granted), "answered after the revoke returned"
        assert self.shown
        assert self.hidden

    def check_calls(self) -> None:
        """Every read that shows the memory overlaps an active grant."""
        for period in self.shown:
            assert any(period.overlaps(granted) for granted in self.granted), "shown without a grant"
        assert self.shown
        assert self.hidden


async def _retrieved(service: Service, request: RequestContext, memory_id: str) -> bool:
    try:
        await get.retrieve_memory(service, request, RetrieveArguments(memory_id=memory_id))
    except NotFound:
        return False
    return True


async def _listed(service: Service, request: RequestContext, memory_id: str) -> bool:
    answer = await get.list_memories(service, request, ListArguments(agent_id="alice", limit=10))
    return memory_id in {memory.memory_id for memory in answer.memories}


async def _searched(service: Service, request: RequestContext, memory_id: str) -> bool:
    answer = await search.semantic_search(service, request, SearchArguments(query=WORDS, mode="keyword"))
    return memory_id in {hit.memory.memory_id for hit in answer.hits}


async def _resembling(service: Service, request: RequestContext, memory_id: str) -> bool:
    try:
        await search.find_similar(service, request, SimilarArguments(memory_id=memory_id, limit=3))
    except NotFound:
        return False
    return True


async def _in_shared_context(service: Service, request: RequestContext, memory_id: str) -> bool:
    answer = await shared_context.get_shared_context(service, request, SharedContextArguments())
    return memory_id in {shared.memory.memory_id for shared in answer.memories}


READS: list[Read] = [_retrieved, _listed, _searched, _resembling, _in_shared_context]


async def _read_repeatedly(history: History, over: asyncio.Event, look: Callable[[], Awaitable[bool]]) -> None:
    while not over.is_set():
        start = time.perf_counter()
        seen = await look()
        (history.shown if seen else history.hidden).append(Period(start, time.perf_counter()))


async def _read_until(history: History, looks: list[Callable[[], Awaitable[bool]]], writing: Awaitable[None]) -> None:
    over = asyncio.Event()
    readers = [asyncio.create_task(_read_repeatedly(history, over, look)) for look in looks]
    try:
        await writing
    finally:
        over.set()
        await asyncio.gather(*readers)


async def test_no_answer_after_revoke_returned_shows_the_memory(
    server: Server, alice: Agent, bob: Agent, namespace: str
) -> None:
    await register(bob, "bob")
    secret = await alice.store(f"The {WORDS}.", context="island")
    service, her, him = (
        await server.runtime.service(),
        RequestContext(Caller(namespace, "alice")),
        RequestContext(Caller(namespace, "bob")),
    )
    history = History()

    async def grant_and_revoke() -> None:
        end = time.perf_counter() + ROUNDS_SECONDS
        while time.perf_counter() < end:
            start = time.perf_counter()
            shared = await grants.share_context(service, her, ShareArguments(target_agent="bob", context="island"))
            seen = len(history.shown)
            while len(history.shown) < seen + len(READS) and time.perf_counter() < end:
                await asyncio.sleep(0)
            answer = await grants.revoke_shared(service, her, shared.grant_id)
            assert not answer.partial
            history.granted.append(Period(start, time.perf_counter()))
            hidden = len(history.hidden)
            while len(history.hidden) < hidden + len(READS) and time.perf_counter() < end:
                await asyncio.sleep(0)

    looks = [partial(way, service, him, secret) for way in READS]
    await _read_until(history, looks, grant_and_revoke())
    history.check_answers()


async def test_mcp_call_after_revoke_or_expiry_does_not_show_the_memory(alice: Agent, bob: Agent) -> None:
    await register(bob, "bob")
    revoked = await alice.store(f"The {WORDS}.", context="island")
    expiring = await alice.store("A map of the coast.", context="map")
    on_revoke, on_expiry = History(), History()

    async def shows(memory_id: str) -> bool:
        return not (await bob.raw("retrieve_memory", memory_id=memory_id)).is_error

    async def finds(words: str) -> bool:
        return bool(await bob.search(words, mode="keyword"))

    async def grant_and_revoke() -> None:
        end = time.perf_counter() + ROUNDS_SECONDS
        while time.perf_counter() < end:
            start = time.perf_counter()
            grant = await share(alice, "bob", context="island")
            await alice.call("revoke_shared_context", grant_id=grant)
            on_revoke.granted.append(Period(start, time.perf_counter()))

    async def grant_and_wait() -> None:
        start = time.perf_counter()
        await share(alice, "bob", context="map", expires_in_seconds=1)
        on_expiry.granted.append(Period(start, time.perf_counter() + 1.0))
        await _read_until(on_revoke, [lambda: shows(revoked), lambda: finds(WORDS)], grant_and_revoke())

    await _read_until(on_expiry, [lambda: shows(expiring), lambda: finds("map")], grant_and_wait())
    on_revoke.check_calls()
    on_expiry.check_calls()


async def test_principal_resolved_before_revoke_cannot_read_or_write_after(
    server: Server, stack: Stack, alice: Agent, bob: Agent, namespace: str
) -> None:
    """As in another server process: a revoke here does not wait for its reads and writes."""
    await register(bob, "bob")
    secret = await alice.store(f"The {WORDS}.", context="island")
    grant = await share(alice, "bob", context="island", permission="write")
    service, client = await server.runtime.service(), stack.client
    request = RequestContext(Caller(namespace, "bob"))
    principal = await resolve(service.backend, request)
    record = await load_readable(service, request, principal, secret)
    selected = build.readable(principal, ResolvedFilters(), time.time())
    await alice.call("revoke_shared_context", grant_id=grant)
    refs = await queries.some(client, Keys(namespace), selected, limit=5, timeout_ms=2000)
    assert [ref.memory_id for ref in refs] == [secret]
    integrity = service.backend.integrity
    assert await loader.load_readable(client, Keys(namespace), refs, request, principal, integrity) == []
    with pytest.raises(NotFound):
        await load_readable(service, request, principal, secret)
    changed = replace(record, metadata='{"late":1}')
    model = await service.models.current(namespace)
    write = update._write  # pyright: ignore[reportPrivateUsage]
    status, _ = await write(service, request, principal, record, changed, model)
    assert status == "not_owner"


async def test_no_write_succeeds_after_revoke_returned(alice: Agent, bob: Agent) -> None:
    await register(bob, "bob")
    secret = await alice.store(f"The {WORDS}.", context="island")
    for number in range(10):
        grant = await share(alice, "bob", context="island", permission="write")
        writes = [
            asyncio.create_task(bob.raw("update_memory", memory_id=secret, metadata={"round": number, "write": n}))
            for n in range(4)
        ]
        await alice.call("revoke_shared_context", grant_id=grant)
        before = (await alice.call("retrieve_memory", memory_id=secret))["memory"]["rev"]
        await asyncio.gather(*writes)
        assert (await alice.call("retrieve_memory", memory_id=secret))["memory"]["rev"] == before
    assert (await refusal(bob, "update_memory", memory_id=secret, content="x"))[0] == "not_found"
