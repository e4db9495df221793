"""What the tests of a change of model share: a second real model, a team at work, and what Redis holds of a model."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memory_core.crypto.keyring import load_keyring, written
from memory_core.crypto.sealing import Transports
from memory_core.records.keys import Keys
from memory_core.records.model import Model
from memory_core.redis_client import Client
from memory_core.settings.settings import Settings
from memory_core.store import sidecar as sidecars
from memory_embedder.engines.weights import DEFAULT_MODEL, find_weights
from memory_server.operations import reindex
from memory_server.operations.reindex import Reindexed
from memory_server.service import Service
from support.embedder_fixtures import wait_until
from support.redis_users import SERVER, SIDECAR
from support.stack import MASTER_KEY, Agent, SidecarProcess, Stack

OLD, NEW = Model(DEFAULT_MODEL, 384), Model("twin-of-minilm", 384, 2)
"""Two models of the same weights, under which everything must be found alike."""
PLACES = ("harbour", "mountain", "library", "kitchen", "workshop", "garden", "station", "theatre", "mill", "school")


def transports() -> Transports:
    """Give the keys by which a sidecar of the session's stack opens what is sealed."""
    return Transports(load_keyring(Settings.load(master_key=MASTER_KEY)).transports)


def twin(folder: Path) -> Path:
    """Put the packaged weights into a folder of another name."""
    packaged, place = find_weights(DEFAULT_MODEL), folder / NEW.name
    place.mkdir()
    shutil.copy(packaged.model, place / "model.onnx")
    shutil.copy(packaged.tokenizer, place / "tokenizer.json")
    return place


@asynccontextmanager
async def sidecar_of(stack: Stack, model: str, name: str) -> AsyncGenerator[SidecarProcess]:
    """Run a sidecar of another model beside that of the stack."""
    key = load_keyring(Settings.load(master_key=MASTER_KEY)).transports[0]
    sidecar = SidecarProcess(
        stack.redis.url_of(SIDECAR), "--model", model, "--backend", "onnx", MEMORY_TRANSPORT_KEY=written(key)
    )
    sidecar.start()
    try:
        await wait_until(lambda: is_ready(stack.client, name))
        yield sidecar
    finally:
        sidecar.stop()


async def is_ready(client: Client, model: str) -> bool:
    """Whether a sidecar of a model serves."""
    return any(one.state == "ready" and one.model == model for one in await sidecars.living(client))


def quiet(*_: Any) -> None:
    """Hear of progress and say nothing."""


async def change(
    service: Service, namespace: str, model: str | None = None, *, leave_failed: bool = False
) -> Reindexed:
    """Change a model as the command does; what was before need not be kept for long."""
    target = await reindex.choose(service, namespace, model)
    return await reindex.change(service, namespace, target, quiet, leave_failed=leave_failed, keep_seconds=1.1)


async def start_command(stack: Stack, namespace: str, *words: str) -> asyncio.subprocess.Process:
    """Run `redis-memory reindex` in a process of its own, which may be killed."""
    environment = {**os.environ, "REDIS_URL": stack.redis.url_of(SERVER), "MEMORY_MASTER_KEY": MASTER_KEY}
    words = ("reindex", "--namespace", namespace, "--json", *words)
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "memory_server", *words, env=environment, stdout=pipe, stderr=pipe
    )


async def records(client: Client, namespace: str) -> dict[str, dict[bytes, bytes]]:
    """Read all records, pieces too."""
    keys, found = Keys(namespace), dict[str, dict[bytes, bytes]]()
    for prefix in (keys.memory_prefix, keys.chunk_prefix):
        async for name in client.scan_iter(match=f"{prefix}*", count=1000):
            found[name.decode()] = await client.hgetall(name)
    return found


async def lacking(client: Client, namespace: str, model: Model) -> list[str]:
    """Name the records without a vector of a model."""
    fields = {model.field.encode(), model.sealed_field.encode()}
    return [name for name, row in (await records(client, namespace)).items() if not fields & row.keys()]


def said(number: int) -> str:
    """Make a text that no other is like."""
    return f"Note {number}: in the {PLACES[number % 10]} we counted {number * 37 % 1009} barrels of kind {number % 13}."


@dataclass
class Load:
    """A team at work: one agent stores, others search for what is there, until told to stop."""

    stack: Stack
    namespace: str
    known: Sequence[int]
    stored: dict[str, int] = field(default_factory=dict[str, int])
    searches: int = 0
    failures: list[str] = field(default_factory=list[str])
    _stopping: bool = False

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[Load]:
        """Work until left."""
        async with (
            self.stack.server.agent("alice", self.namespace) as writer,
            self.stack.server.agent("alice", self.namespace) as reader,
        ):
            tasks = [asyncio.create_task(self._store(writer)), asyncio.create_task(self._search(reader))]
            try:
                yield self
            finally:
                self._stopping = True
                await asyncio.gather(*tasks)

    async def _store(self, agent: Agent) -> None:
        for number in range(5000, 5400):
            if self._stopping:
                return
            try:
                waits = bool(number % 2)
                self.stored[await agent.store(said(number), visibility="shared", wait=waits)] = number
            except Exception as error:
                self.failures.append(f"store {number}: {error}")
            await asyncio.sleep(0.02)

    async def _search(self, agent: Agent) -> None:
        for turn in range(20_000):
            if self._stopping:
                return
            number = self.known[turn % len(self.known)]
            mode = ("vector", "hybrid")[turn % 2]
            try:
                answer = await agent.call("semantic_search", query=said(number), mode=mode, limit=3)
                self.searches += 1
                if said(number) not in [hit["memory"]["content"] for hit in answer["hits"]]:
                    self.failures.append(f"{mode} {number} is not found: {answer.get('reason')}")
                if "by words only:" in answer.get("reason", ""):
                    self.failures.append(f"{mode} {number}: {answer.get('reason')}")
            except Exception as error:
                self.failures.append(f"{mode} {number}: {error}")
            await asyncio.sleep(0.02)


async def nearest(agent: Agent, numbers: Sequence[int]) -> list[list[str]]:
    """Give the ten nearest to each of some notes said in other words."""
    found: list[list[str]] = []
    for number in numbers:
        place, barrels = PLACES[number % 10], number * 37 % 1009
        query = f"{barrels} barrels of kind {number % 13} were found at the {place} (note {number})"
        found.append(await agent.search(query, mode="vector", limit=10))
    return found


def hits(numbers: Sequence[int], found: Sequence[Sequence[str]]) -> int:
    """Count the notes that are among the nearest."""
    return sum(said(number) in near for number, near in zip(numbers, found, strict=True))


def overlap(one: Sequence[Sequence[str]], other: Sequence[Sequence[str]]) -> float:
    """Give the share of what was found that is found again. The vectors of one text are not quite equal: int8 weights
    make them depend a little on what is embedded in the same batch.
    """
    both = sum(len({*left} & {*right}) for left, right in zip(one, other, strict=True))
    return both / sum(map(len, one))
