"""Deployments for the doctor to look at: one that is whole, with an encoder without a model, and one that is bare."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memory_core.crypto.keyring import load_keyring, new_key
from memory_core.crypto.sealing import Transports
from memory_core.records import sidecar
from memory_core.records.keys import Keys
from memory_core.records.sidecar import SidecarStatus
from memory_core.settings.settings import Settings
from memory_core.store.connection import Client, connect
from memory_core.store.index import ensure_namespace
from memory_embedder.engines.fake import FakeEncoder
from memory_server.operations.doctor import examine
from memory_server.operations.health.report import Report
from support.embedder_fixtures import RedisServer, running, wait_until
from support.stack import serving

KEY = new_key()
TRANSPORTS = Transports(load_keyring(Settings.load(master_key=KEY)).transports)
MODEL = {"embedding_model": "fake", "vector_dimension": 16}
LONG = " ".join(f"Sentence number {number} of a log that goes on for long." for number in range(200))


@dataclass(slots=True)
class Deployment:
    """A Redis with the settings of its servers."""

    redis: RedisServer
    client: Client
    settings: dict[str, Any]
    keys: Keys = field(default_factory=lambda: Keys("team"))
    memory: str = ""
    long: str = ""

    async def examine(self, *, deep: bool = False, **other: Any) -> Report:
        """Have the doctor look; what is not a setting goes to it."""
        clock: dict[str, Any] = {"clock": other.pop("clock")} if "clock" in other else {}
        return await examine(Settings.load(**{**self.settings, **other}), deep=deep, **clock)

    async def rebuild(self, **hnsw: Any) -> None:
        """Make the index of the namespace anew and wait until it covers all records."""
        await self.drop()
        store = Settings.load(vector_store={**MODEL, "hnsw": hnsw}).vector_store
        await ensure_namespace(self.client, self.keys.namespace, store)

        async def whole() -> bool:
            return not int((await self.info())[b"indexing"])

        await wait_until(whole)

    async def drop(self) -> None:
        """Take the index away, and leave the records."""
        await self.client.execute_command("FT.DROPINDEX", self.keys.index())

    async def info(self) -> dict[bytes, Any]:
        """What Redis says of the index."""
        return await self.client.execute_command("FT.INFO", self.keys.index_alias)

    async def announce(self, **status: Any) -> None:
        """Have a sidecar say that it lives."""
        known: dict[str, Any] = {
            "id": "one", "host": "here", "pid": 1, "state": "ready", "model": "fake", "dimension": 16,
            "backend": "fake", "device": "cpu", "provider": "fake",
        }  # fmt: skip
        await sidecar.announce(self.client, SidecarStatus(**{**known, **status}))

    async def withdraw(self) -> None:
        """Have it stop in order."""
        await sidecar.withdraw(self.client, "one")


@asynccontextmanager
async def bare(folder: Path, **settings: Any) -> AsyncGenerator[Deployment]:
    """A Redis in which there is nothing."""
    redis = RedisServer(folder)
    redis.start()
    try:
        async with connect(redis.url) as client:
            yield Deployment(redis, client, {"redis_url": redis.url, "vector_store": MODEL, "port": 0, **settings})
    finally:
        redis.kill()


@asynccontextmanager
async def whole(folder: Path) -> AsyncGenerator[Deployment]:
    """A Redis with memories, one of them long, and a sidecar that lives; the server that stored them has stopped."""
    async with AsyncExitStack() as parts:
        found = await parts.enter_async_context(bare(folder))
        await parts.enter_async_context(running(found.redis.url, FakeEncoder(), transports=TRANSPORTS))
        async with serving(found.redis.url, vector_store=MODEL, master_key=KEY) as server:
            async with server.agent("ann", "team") as ann:
                stored = await asyncio.gather(*(ann.store(f"Note {number} on boats.") for number in range(30)))
                found.memory, found.long = stored[0], await ann.store(LONG)
            await wait_until(lambda: _is_drained(found))
        await found.client.config_resetstat()
        yield found


async def _is_drained(found: Deployment) -> bool:
    return not await found.client.xlen(found.keys.jobs("fake")) and not await found.client.zcard(found.keys.chores)


def only(report: Report) -> tuple[str, str]:
    """Give id and remedy of the one fault that a report names."""
    assert len(report.faults) == 1, report.text()
    return report.faults[0].id, report.faults[0].remedy
