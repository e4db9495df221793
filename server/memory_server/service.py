"""The services of one server process, and their background work."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable, Iterable, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from urllib.parse import quote

from memory_core.cancellation import cancel
from memory_core.errors import MemoryServiceError, Tampered
from memory_core.records import redis_time
from memory_core.records.agent import Agent
from memory_core.records.audit_entry import MOST_IDS, system_entry
from memory_core.records.authority_codes import Authority
from memory_core.records.keys import Keys, bell, lane_of
from memory_core.records.times import to_redis
from memory_core.settings.settings import Settings
from memory_core.slices import slices
from memory_core.store.connection import store_errors
from memory_server.engine.counters import Counters
from memory_server.engine.durability import Durability
from memory_server.engine.inflight_reads import InflightReads
from memory_server.engine.known_models import KnownModels
from memory_server.engine.latency import Latency
from memory_server.engine.namespaces import Namespaces
from memory_server.engine.presence import Presence
from memory_server.engine.redis_backend import Backend
from memory_server.engine.request_context import Caller
from memory_server.engine.sidecars.bulk_client import BulkClient
from memory_server.engine.sidecars.embeddings import Embeddings
from memory_server.engine.stdio_sessions import announce_session
from memory_server.events.hub import Hub
from memory_server.events.match_log import MatchLog
from memory_server.events.positions import Positions
from memory_server.memories.quotas import Quotas
from memory_server.security.audit.auditor import Auditor
from memory_server.security.audit.recorder import Recorder
from memory_server.security.vault import Vault

log = logging.getLogger(__name__)
_FLUSH_SECONDS = 1.0
_SOON_SECONDS = 0.01
_TOUCHES_PER_CALL = 100


class Service:
    """Redis, embeddings and counters of one server process."""

    def __init__(
        self,
        settings: Settings,
        recorder: Recorder | None = None,
        counters: Counters | None = None,
        presence: Presence | None = None,
    ) -> None:
        self.settings = settings
        self.counters = counters or Counters()
        self.presence = presence or Presence()
        self.backend = Backend(settings)
        self.models = KnownModels(self.backend.read, settings.vector_store)
        self.namespaces = Namespaces(self.backend, self.models)
        self.recorder = recorder or Recorder()
        self.auditor = Auditor(self.backend, self.recorder)
        self.backend.on_authority_failure = self._audit_failure
        self.backend.on_library_restored = lambda: self.recorder.add(
            settings.namespace, system_entry("server", "restore_functions")
        )
        self.backend.on_damage = self._report_damage
        self.embeddings = Embeddings(self.backend, self.models)
        self.bulk = BulkClient(self.backend, self.models, self.embeddings.replies)
        self.vault = Vault(self.backend)
        self.durability = Durability(self.backend)
        self.inflight_reads = InflightReads()
        self.quotas = Quotas(settings, self.namespaces)
        self.events = Hub(self.backend, self.models)
        self.positions = Positions(self.backend)
        self.matches = MatchLog()
        self.search_latency = Latency("search_seconds", "How long searches took.")
        self.embedding_latency = Latency("embedding_seconds", "How long calls waited for vectors.")
        self.rosters: dict[str, tuple[float, list[Agent]]] = {}
        self._due: set[Hashable] = set()
        self._running: set[asyncio.Task[None]] = set()
        self._touched: defaultdict[str, Counter[str]] = defaultdict(Counter)

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[Service]:
        """Run the background work until left."""
        async with AsyncExitStack() as parts:
            for part in (self.backend, self.namespaces, self.auditor, self.embeddings, self.vault, self.durability):
                await parts.enter_async_context(part.running())
            for part in (self.events, self.positions):
                await parts.enter_async_context(part.running())
            announce_session(self.settings, self.presence, parts.enter_context(ExitStack()))
            await parts.enter_async_context(self.presence.running(self.backend))
            flusher = asyncio.create_task(self._flush_forever())
            try:
                yield self
            finally:
                await cancel([flusher, *self._running])

    def touch(self, caller: Caller, memory_ids: Iterable[str]) -> None:
        """Count a read of each memory, but not by an operator; counts are written in bulk, a second later."""
        if not caller.public_only:
            self._touched[caller.namespace].update(memory_ids)

    def ring(self, namespace: str) -> None:
        """Wake the sidecars soon because a namespace has jobs. Sidecars also poll, so a lost wake-up is harmless."""
        self.soon(("ring", namespace), lambda: self._ring(namespace))

    def soon(self, key: Hashable, action: Callable[[], Awaitable[object]], seconds: float = _SOON_SECONDS) -> None:
        """Run an action shortly, once for all requests with the same key. Its failure must be harmless."""
        if key not in self._due:
            self._due.add(key)
            task = asyncio.create_task(self._do(key, action, seconds))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    def _audit_failure(self, kind: Authority, namespace: str, name: str) -> None:
        """Record that an authorisation record failed its check. A forged token or key names any namespace."""
        is_claimed = kind in (Authority.CREDENTIAL, Authority.OPERATOR_KEY)
        entry = system_entry("server", "refuse_authority", [f"{kind}:{name.replace(' ', ':')}"])
        self.recorder.add(self.settings.namespace if is_claimed else namespace, {**entry, "outcome": Tampered.code})

    def _report_damage(self, namespace: str, damaged: list[list[str]]) -> None:
        """Log, count and audit what was removed as damaged."""
        self.counters.damaged += len(damaged)
        for key, entry, why in damaged:
            log.warning("removed a damaged entry of %s: %r: %s", key, entry, why)
        named = [quote(f"{key}:{entry}", safe=":{}") for key, entry, _ in damaged[:MOST_IDS]]
        self.recorder.add(namespace, system_entry("server", "remove_damaged", named))

    async def drained(self) -> None:
        """Wait for the pending actions, before a process without background work ends."""
        await asyncio.gather(*self._running)

    async def _do(self, key: Hashable, action: Callable[[], Awaitable[object]], seconds: float) -> None:
        await asyncio.sleep(seconds)
        self._due.discard(key)
        try:
            await action()
        except MemoryServiceError as error:
            log.warning("%s was not done: %s", key, error.message)
        except Exception:
            log.exception("%s failed", key)

    async def _ring(self, namespace: str) -> None:
        client = await self.backend.client()
        async with store_errors():
            await client.xadd(bell(lane_of(namespace)), {"ns": namespace}, maxlen=1000, approximate=True)

    async def _flush_forever(self) -> None:
        while True:
            await asyncio.sleep(_FLUSH_SECONDS)
            try:
                await self.flush_touches()
            except Exception:
                log.exception("access counts were lost")

    async def flush_touches(self) -> None:
        """Write the access counts that wait."""
        pending, self._touched = self._touched, defaultdict(Counter)
        for namespace, counts in pending.items():
            for part in slices(list(counts.items()), _TOUCHES_PER_CALL):
                await self._write_touches(Keys(namespace), part)

    async def _write_touches(self, keys: Keys, counts: Sequence[tuple[str, int]]) -> None:
        names = [key for memory_id, _ in counts for key in (keys.memory(memory_id), keys.use(memory_id))]
        now, numbers = to_redis(redis_time.now()), [count for _, count in counts]
        try:
            await self.backend.write("rm1_touch", names, counts=numbers, at=now)
        except MemoryServiceError as error:
            log.warning("%d access counts were lost: %s", len(counts), error.message)
