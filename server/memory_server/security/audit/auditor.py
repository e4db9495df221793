"""Writes the recorded audit entries in the background, and seals them soon after each write."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

from memory_core.cancellation import cancel
from memory_core.crypto.signed_entry import sign
from memory_core.errors import MemoryServiceError
from memory_core.records.keys import Keys
from memory_server.engine.redis_backend import Backend
from memory_server.security.audit.chain import seal
from memory_server.security.audit.recorder import Batch, Recorder

log = logging.getLogger(__name__)
FLUSH_SECONDS = 0.5
SEAL_SECONDS = 0.4
PAUSE_SECONDS = 1.0
"""After a failure."""
PARTING_SECONDS = 3.0
"""Time limit for writing the remaining entries when a server stops."""


class Auditor:
    """The audit's background work in one process."""

    def __init__(self, backend: Backend, recorder: Recorder) -> None:
        self.recorder = recorder
        self.failures = 0
        """Failed attempts to write a batch."""
        self._backend = backend
        self._unsealed: set[str] = set()
        self._to_seal = asyncio.Event()
        self._flushing = asyncio.Lock()
        self._trimmed: dict[str, float] = {}
        backend.on_audited = self.noticed

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[Auditor]:
        """Write and seal until left, then write and seal the rest."""
        tasks = [asyncio.create_task(work()) for work in (self._flush_forever, self._seal_forever)]
        try:
            yield self
        finally:
            await cancel(tasks)
            with suppress(TimeoutError):
                async with asyncio.timeout(PARTING_SECONDS):
                    await self.flush()
                    while not await self.seal():
                        await asyncio.sleep(0.1)

    def noticed(self, namespace: str) -> None:
        """Schedule the sealing of a namespace that has a new entry."""
        if self._backend.keyring.signer is not None:
            self._unsealed.add(namespace)
            self._to_seal.set()

    def is_due_for_trim(self, namespace: str, seconds: float) -> bool:
        """Whether the last trim of a namespace is so many seconds ago; if so, note that one starts now."""
        now = time.monotonic()
        if now - self._trimmed.get(namespace, -math.inf) < seconds:
            return False
        self._trimmed[namespace] = now
        return True

    async def flush(self, *, merged: bool = True) -> bool:
        """Write the held entries, also those that still merge; return whether all were written."""
        async with self._flushing:
            for batch in self.recorder.batches(merged=merged):
                try:
                    await self._write(batch)
                except MemoryServiceError as error:
                    self.failures += 1
                    log.warning("audit entries are held until Redis accepts them: %s", error.message)
                    break
                except Exception:
                    self.failures += 1
                    log.exception("audit entries of %s cannot be written", batch.namespace)
                else:
                    self.recorder.done(batch)
            return self.recorder.all_done()

    async def seal(self) -> bool:
        """Seal the namespaces that have new entries; return whether all are sealed."""
        self._to_seal.clear()
        for namespace in list(self._unsealed):
            self._unsealed.discard(namespace)
            done = False
            try:
                done = await seal(self._backend, namespace)
            except MemoryServiceError as error:
                log.info("the audit of %s is not sealed yet: %s", namespace, error.message)
            except Exception:
                log.exception("the audit of %s cannot be sealed", namespace)
            finally:
                if not done:
                    self.noticed(namespace)
        return not self._unsealed

    async def _write(self, batch: Batch) -> None:
        keys = Keys(batch.namespace)
        await self._backend.client()
        if not await self._exists(batch):
            return
        await self._backend.remember_audited(batch.namespace)
        answer = await self._backend.write(
            "rm1_audit",
            [keys.audit, keys.counters, keys.audit_batch(batch.id)],
            repeatable=True,
            entries=[sign(self._backend.keyring, batch.namespace, entry) for entry in batch.entries],
        )
        if answer["status"] == "key_missing":
            log.error("%d audit entries of %s are lost: it is signed", len(batch.entries), batch.namespace)
            return
        self.noticed(batch.namespace)

    async def _exists(self, batch: Batch) -> bool:
        """Whether a batch's namespace exists, or the server itself acted there.

        Agents may name any namespace when they read. An audit would create it.
        """
        if any(entry["from"].startswith(f"{entry['who']} ") for entry in batch.entries):
            return True
        return await self._backend.exists(batch.namespace)

    async def _flush_forever(self) -> None:
        while True:
            await self.recorder.some.wait()
            with suppress(TimeoutError):
                async with asyncio.timeout(FLUSH_SECONDS):
                    await self.recorder.enough.wait()
            if not await self.flush(merged=False):
                await asyncio.sleep(PAUSE_SECONDS)

    async def _seal_forever(self) -> None:
        while True:
            await self._to_seal.wait()
            await asyncio.sleep(SEAL_SECONDS)
            if not await self.seal():
                await asyncio.sleep(SEAL_SECONDS)
