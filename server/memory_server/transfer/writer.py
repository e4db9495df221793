"""Writes imported memories, many in one Function call. A memory that was imported before is not written again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from memory_core.errors import InvalidArgument, StoreUnavailable
from memory_core.records import owners
from memory_core.records.audit_entry import AuditEntry
from memory_core.records.keys import Keys, digest
from memory_core.records.model import Model
from memory_core.records.scope import Principal
from memory_core.records.times import to_redis
from memory_core.redis_client import Client
from memory_server.memories.chunks import ChunkedContent, settle_or_tell, split_content
from memory_server.memories.record_encoder import encoder_of, flat, signed_elsewhere
from memory_server.service import Service
from memory_server.transfer.incoming_memory import Arrival

MAX_MEMORIES = 20
"""Memories in one Function call."""
MAX_VECTORS = 8
"""Vectors in one Function call: each is inserted into the graph, and Redis must not stall."""
MAX_CHARACTERS = 2 << 20
"""Characters of content after which a call is full: Redis copies and hashes them."""
_LOOKUP_SIZE = 500
_ATTEMPTS = 5
FAILURES = ("taken", "unknown_owner")
"""The outcomes of memories that could not be imported."""


@dataclass(frozen=True, slots=True)
class _Split:
    arrival: Arrival
    content: ChunkedContent


def _is_full(batch: Sequence[_Split]) -> bool:
    """Whether one Function call may write no more memories than these."""
    vectors = sum(one.content.vectors is not None for one in batch)
    size = sum(len(one.arrival.record.content) for one in batch)
    return len(batch) >= MAX_MEMORIES or vectors >= MAX_VECTORS or size >= MAX_CHARACTERS


class ImportWriter:
    """Writes memories to one namespace; `outcomes` counts what happened to them.

    With a `principal` they count against its quota. Their vectors are of `model`. `file` identifies a file that no key
    of this server signed: its memories go only to agents that came with it. `dry_run` only counts.
    """

    def __init__(
        self,
        service: Service,
        namespace: str,
        audit: Callable[[Sequence[str]], AuditEntry],
        principal: Principal | None = None,
        *,
        model: Model,
        file: str | None = None,
        dry_run: bool = False,
    ) -> None:
        self._service, self._keys, self._audit, self._principal = service, Keys(namespace), audit, principal
        self._model, self._file, self._dry_run = model, file, dry_run
        self._waiting: dict[str, Arrival] = {}
        self.outcomes: Counter[str] = Counter()
        self.warnings: set[str] = set()

    async def add(self, arrival: Arrival) -> None:
        """Buffer a memory; writes when the buffer is full."""
        if arrival.record.id in self._waiting:
            self.outcomes["kept"] += 1
            return
        self._waiting[arrival.record.id] = arrival
        if len(self._waiting) >= _LOOKUP_SIZE:
            await self.flush()

    async def flush(self) -> None:
        """Write the buffered memories.

        Raises:
            QuotaExceeded: the agent's quota is used up. KeyMissing: records are signed here, and there is no key.
            StoreUnavailable, OutcomeUnknown.
        """
        new = await self._new_ones(list(self._waiting.values()))
        self._waiting.clear()
        if self._dry_run:
            self.outcomes["new"] += len(new)
            return
        ready = [await self._split(arrival) for arrival in new]
        if self._principal and ready:
            chunks = sum(len(one.content.chunks) for one in ready)
            await self._service.quotas.take(self._principal, len(ready), chunks)
        batch: list[_Split] = []
        for one in ready:
            batch.append(one)
            if _is_full(batch):
                await self._write(batch)
                batch = []
        if batch:
            await self._write(batch)

    async def _new_ones(self, arrivals: Sequence[Arrival]) -> list[Arrival]:
        async def fetch(client: Client) -> list[list[bytes | None]]:
            pipe = client.pipeline(transaction=False)
            for arrival in arrivals:
                pipe.hmget(self._keys.memory(arrival.record.id), ["owner", "rev", "hash"])
            return await pipe.execute()

        rows = await self._service.backend.read(fetch) if arrivals else []
        new: list[Arrival] = []
        for arrival, (owner, rev, stored_hash) in zip(arrivals, rows, strict=True):
            if owner is None:
                new.append(arrival)
            elif owner.decode() not in arrival.owners:
                self.outcomes["taken"] += 1
            else:
                same = arrival.same_as(int(rev or 0), (stored_hash or b"").decode())
                self.outcomes["kept" if same else "differs"] += 1
        return new

    async def _split(self, arrival: Arrival) -> _Split:
        chunks = await split_content(arrival.record.content)
        return _Split(arrival, ChunkedContent(arrival.record.content, chunks, self._model, arrival.vectors_of(chunks)))

    async def _write(self, batch: Sequence[_Split]) -> None:
        outcomes: list[str] = (await self._call(batch))["fates"]
        self.outcomes.update(outcomes)
        written = [one for one, outcome in zip(batch, outcomes, strict=True) if outcome == "new"]
        if any(one.content.vectors is None for one in written):
            self._service.ring(self._keys.namespace)
        for one in written:
            if len(one.content.chunks) > 1:
                chore = f"{one.arrival.record.id}:{len(one.content.chunks)}"
                reason = await settle_or_tell(self._service, self._keys.namespace, chore, content=one.content)
                self.warnings.update([reason] if reason else [])

    async def _call(self, batch: Sequence[_Split]) -> dict[str, Any]:
        """Call the Function, again if a data key was replaced meanwhile."""
        keys, records = self._keys, [one.arrival.record for one in batch]
        for _ in range(_ATTEMPTS):
            items = [await self._item(one) for one in batch]
            names = [keys.audit, keys.counters, keys.job_streams, keys.chores, keys.events, keys.tombstones]
            answer = await self._service.backend.write(
                "rm1_import",
                [*names, *(key for own, _ in items for key in own)],
                repeatable=True,
                items=[item for _, item in items],
                grace=self._service.settings.lifetimes.grace,
                audit=self._audit([record.id for record in records]),
            )
            if answer["status"] == "imported":
                return answer
            if answer["status"] == "key_missing":
                raise signed_elsewhere()
            if answer["status"] == "bad_vector":
                raise InvalidArgument(f"the vector of memory {answer['id']} does not have unit length")
            for record in records:
                self._service.vault.forget(keys.namespace, record.owner)
        raise StoreUnavailable("data keys are being replaced repeatedly", hint="run it again", retry_after=1.0)

    async def _item(self, one: _Split) -> tuple[list[str], dict[str, Any]]:
        keys, arrival, record = self._keys, one.arrival, one.arrival.record
        chunks, sensitive, integrity = one.content.chunks, record.is_sensitive, self._service.backend.integrity
        encoder = await encoder_of(self._service, keys.namespace, record.owner, self._model, sensitive=sensitive)
        record = replace(record, content_hash=encoder.content_hash(record.content))
        item: dict[str, Any] = {
            "id": record.id,
            "owner": record.owner,
            "owners": list(arrival.owners),
            "mark": self._file and owners.file_mark(integrity, keys.namespace, record.owner, self._file),
            "agent": arrival.agent,
            "writer": record.writer,
            "rev": record.rev,
            "hash": record.content_hash,
            "context": digest(record.context or ""),
            "expires_at": arrival.expires_at,
            "ttl": arrival.ttl,
            "fields": flat(encoder.head(record, chunks)),
            "pieces": len(chunks),
            "vector": encoder.vector(record, 0, one.content.vector(0)),
            "job": encoder.job(record, 0, chunks[0]),
            "key": encoder.key_version,
            "seal": integrity.seal(keys.namespace, record.id, record.rev),
        }
        if arrival.keeps_times:
            times = {"created_at": to_redis(record.created_at), "updated_at": to_redis(record.updated_at)}
            item |= {"seq": record.seq, **times}
        own = [
            keys.memory(record.id),
            keys.owner(record.owner),
            keys.seq(record.owner),
            keys.same(record.owner, record.content_hash),
            keys.data_key(record.owner),
        ]
        return own, item
