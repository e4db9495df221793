"""Deployments for the doctor: a healthy one with a fake encoder, and an empty one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memory_core.crypto.keyring import load_keyring, new_key
from memory_core.crypto.sealing import Transports
from memory_core.records.keys import Keys
from memory_core.redis_client import Client
from memory_core.settings.settings import Settings
from memory_core.store import sidecar
from memory_core.store.connection import connect
from memory_core.store.index import ensure_namespace
from memory_core.store.sidecar import SidecarStatus
from memory_embedder.engines.fake import FakeEncoder
from memory_server.operations.doctor import examine
from memory_server.operations.health.report import DoctorReport
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

    async def examine(self, *, deep: bool = False, **other: Any) -> DoctorReport:
        """Run the doctor. `clock` is passed on; other arguments are settings."""
        clock: dict[str, Any] = {"clock": other.pop("clock")} if "clock" in other else {}
        return await examine(Settings.load(**{**self.settings, **other}), deep=deep, **clock)

    async def rebuild(self, **hnsw: Any) -> None:
        """Create the index of the namespace again and wait until it covers all records."""
        await self.drop()
        store = Settings.load(vector_store={**MODEL, "hnsw": hnsw}).vector_store
        await ensure_namespace(self.client, self.keys.namespace, store)

        async def is_complete() -> bool:
            return not int((await self.info())[b"indexing"])

        await wait_until(is_complete)

    async def drop(self) -> None:
        """Drop the index, but not the records."""
        await self.client.execute_command("FT.DROPINDEX", self.keys.index())

    async def info(self) -> dict[bytes, Any]:
        """Return FT.INFO of the index."""
        return await self.client.execute_command("FT.INFO", self.keys.index_alias)

    async def announce(self, **status: Any) -> None:
        """Announce a sidecar."""
        known: dict[str, Any] = {
            "id": "one", "host": "here", "pid": 1, "state": "ready", "model": "fake", "dimension": 16,
            "backend": "fake", "device": "cpu", "provider": "fake",
        }  # fmt: skip
        await sidecar.announce(self.client, SidecarStatus(**{**known, **status}))

    async def withdraw(self) -> None:
        """Withdraw the sidecar."""
        await sidecar.withdraw(self.client, "one")


@asynccontextmanager
async def empty_deployment(folder: Path, **settings: Any) -> AsyncGenerator[Deployment]:
    """An empty Redis."""
    redis = RedisServer(folder)
    redis.start()
    try:
        async with connect(redis.url) as client:
            yield Deployment(redis, client, {"redis_url": redis.url, "vector_store": MODEL, "port": 0, **settings})
    finally:
        redis.kill()


@asynccontextmanager
async def healthy_deployment(folder: Path) -> AsyncGenerator[Deployment]:
    """A Redis with memories, one of them long, and a living sidecar. The server that stored them has stopped."""
    async with AsyncExitStack() as parts:
        found = await parts.enter_async_context(empty_deployment(folder))
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


def only_fault(report: DoctorReport) -> tuple[str, str]:
    """Return id and remedy of the only fault in a report."""
    assert len(report.faults) == 1, report.text()
    return report.faults[0].id, report.faults[0].remedy
