"""For tests of a model change: a second real model, agents under load, and reads of a model's data in Redis."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memory_core.crypto.keyring import load_keyring
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
"""Two models with the same weights, which must give the same search results."""
PLACES = ("harbour", "mountain", "library", "kitchen", "workshop", "garden", "station", "theatre", "mill", "school")


def transports() -> Transports:
    """Return the transport keys of the session's stack."""
    return Transports(load_keyring(Settings.load(master_key=MASTER_KEY)).transports)


def twin(folder: Path) -> Path:
    """Copy the packaged weights into a folder of another name."""
    packaged, target = find_weights(DEFAULT_MODEL), folder / NEW.name
    target.mkdir()
    shutil.copy(packaged.model, target / "model.onnx")
    shutil.copy(packaged.tokenizer, target / "tokenizer.json")
    return target


@asynccontextmanager
async def sidecar_of(stack: Stack, model: str, name: str) -> AsyncGenerator[SidecarProcess]:
    """Run a sidecar of another model next to the stack's own."""
    key = load_keyring(Settings.load(master_key=MASTER_KEY)).transports[0]
    sidecar = SidecarProcess(
        stack.redis.url_of(SIDECAR), "--model", model, "--backend", "onnx", MEMORY_TRANSPORT_KEY=key.encoded
    )
    sidecar.start()
    try:
        await wait_until(lambda: is_ready(stack.client, name), 60)
        yield sidecar
    finally:
        sidecar.stop()


async def is_ready(client: Client, model: str) -> bool:
    """Whether a sidecar of a model serves."""
    return any(one.state == "ready" and one.model == model for one in await sidecars.living(client))


def quiet(*_: Any) -> None:
    """Ignore progress reports."""


async def change(
    service: Service, namespace: str, model: str | None = None, *, leave_failed: bool = False
) -> Reindexed:
    """Change a model as the command does, but keep the old vectors only briefly."""
    target = await reindex.choose(service, namespace, model)
    return await reindex.change(service, namespace, target, quiet, leave_failed=leave_failed, keep_seconds=1.1)


async def start_command(stack: Stack, namespace: str, *words: str) -> asyncio.subprocess.Process:
    """Run `redis-memory reindex` in its own process, which tests can kill."""
    environment = {**os.environ, "REDIS_URL": stack.redis.url_of(SERVER), "MEMORY_MASTER_KEY": MASTER_KEY}
    words = ("reindex", "--namespace", namespace, "--json", *words)
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "memory_server", *words, env=environment, stdout=pipe, stderr=pipe
    )


async def records(client: Client, namespace: str) -> dict[str, dict[bytes, bytes]]:
    """Read all records, chunks included."""
    keys, found = Keys(namespace), dict[str, dict[bytes, bytes]]()
    for prefix in (keys.memory_prefix, keys.chunk_prefix):
        async for name in client.scan_iter(match=f"{prefix}*", count=1000):
            found[name.decode()] = await client.hgetall(name)
    return found


async def lacking(client: Client, namespace: str, model: Model) -> list[str]:
    """Return the names of records without a vector of a model."""
    fields = {model.field.encode(), model.sealed_field.encode()}
    return [name for name, row in (await records(client, namespace)).items() if not fields & row.keys()]


def note_text(number: int) -> str:
    """Return a text that is unlike all others."""
    return f"Note {number}: in the {PLACES[number % 10]} we counted {number * 37 % 1009} barrels of kind {number % 13}."


@dataclass
class Load:
    """Load on a stack: one agent stores and another searches until stopped."""

    stack: Stack
    namespace: str
    known: Sequence[int]
    stored: dict[str, int] = field(default_factory=dict[str, int])
    searches: int = 0
    failures: list[str] = field(default_factory=list[str])
    _stopping: bool = False

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[Load]:
        """Run the load until the block ends."""
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
                self.stored[await agent.store(note_text(number), visibility="shared", wait=waits)] = number
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
                answer = await agent.call("semantic_search", query=note_text(number), mode=mode, limit=3)
                self.searches += 1
                if note_text(number) not in [hit["memory"]["content"] for hit in answer["hits"]]:
                    self.failures.append(f"{mode} {number} is not found: {answer.get('reason')}")
                if "by words only:" in answer.get("reason", ""):
                    self.failures.append(f"{mode} {number}: {answer.get('reason')}")
            except Exception as error:
                self.failures.append(f"{mode} {number}: {error}")
            await asyncio.sleep(0.02)


async def nearest(agent: Agent, numbers: Sequence[int]) -> list[list[str]]:
    """Return the ten nearest texts to a paraphrase of each note."""
    found: list[list[str]] = []
    for number in numbers:
        target, barrels = PLACES[number % 10], number * 37 % 1009
        query = f"{barrels} barrels of kind {number % 13} were found at the {target} (note {number})"
        found.append(await agent.search(query, mode="vector", limit=10))
    return found


def hits(numbers: Sequence[int], found: Sequence[Sequence[str]]) -> int:
    """Count the notes found among their nearest texts."""
    return sum(note_text(number) in near for number, near in zip(numbers, found, strict=True))


def overlap(one: Sequence[Sequence[str]], other: Sequence[Sequence[str]]) -> float:
    """Return the share of hits that both searches have. Vectors of one text differ slightly between batches, because
    int8 weights make them depend on the rest of the batch.
    """
    both = sum(len({*left} & {*right}) for left, right in zip(one, other, strict=True))
    return both / sum(map(len, one))


class Killed(BaseException):
    """Simulates the end of the process."""


async def stop_after_each_write(
    service: Service, step: Callable[[], Awaitable[Any]], check: Callable[[], Awaitable[None]] | None = None
) -> int:
    """Run a step that ends after its first write, then one that ends after its second, until one completes.

    `check` runs after each that was stopped. Returns how many were.
    """
    whole, own, stops, left = service.backend.write, asyncio.current_task(), 0, 0

    async def write(function: str, *rest: Any, **more: Any) -> Any:
        nonlocal left
        answer = await whole(function, *rest, **more)
        if asyncio.current_task() is own:  # not the audit's sealer, which writes concurrently
            left -= 1
            if left == 0:
                raise Killed
        return answer

    service.backend.write = write
    try:
        while True:
            left = stops + 1
            try:
                await step()
                return stops
            except Killed:
                stops += 1
            left = -1
            if check:
                await check()
    finally:
        service.backend.write = whole
