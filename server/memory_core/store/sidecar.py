"""Heartbeat records of sidecars: status, hardware and load."""

from __future__ import annotations

from pydantic import BaseModel

from memory_core.crypto.sealing import Transports
from memory_core.records import keys, redis_time
from memory_core.redis_client import Client

HEARTBEAT_SECONDS = 2.0
LIFETIME_SECONDS = 8.0
GIVE_KEY = "set MEMORY_TRANSPORT_KEY of the sidecar to the output of `redis-memory keys transport`"


class BulkStatus(BaseModel):
    """Status of a sidecar's bulk engine; memory in bytes."""

    arrays: str
    faiss: str = ""
    faiss_gpus: int = 0
    fallback: str = ""
    namespaces: int = 0
    vectors: int = 0
    memory_used: int = 0
    memory_total: int
    indexes: dict[str, int] = {}
    filling: int = 0
    requests_total: int = 0


class SidecarStatus(BaseModel):
    """The last reported status of a sidecar; memory in bytes, `texts_per_second` over the last seconds.

    `transport_keys` are the ids of the keys that it can open sealed texts with.
    """

    id: str
    host: str
    pid: int
    state: str = "starting"
    model: str
    dimension: int
    backend: str
    device: str
    provider: str
    fallback: str = ""
    memory_used: int | None = None
    memory_total: int | None = None
    utilisation: float | None = None
    temperature: float | None = None
    power: float | None = None
    batch_tokens: int = 0
    texts_per_second: float = 0.0
    texts_total: int = 0
    asks_total: int = 0
    queue_depth: int = 0
    bulk: BulkStatus | None = None
    started_at: float = 0.0
    transport_keys: list[str] = []
    updated_at: float = 0.0


def lacks_key(transports: Transports, status: SidecarStatus) -> bool:
    """Whether a sidecar lacks the key of a server's sealed texts."""
    return bool(transports.current) and transports.current not in status.transport_keys


async def announce(client: Client, status: SidecarStatus) -> None:
    """Write the record and extend its deadline by Redis's clock."""
    now = await redis_time.ask(client)
    record = status.model_copy(update={"updated_at": now})
    async with client.pipeline(transaction=False) as pipe:
        pipe.set(keys.sidecar(status.id), record.model_dump_json(), ex=int(LIFETIME_SECONDS) + 1)
        pipe.zadd(keys.SIDECARS, {status.id: now + LIFETIME_SECONDS})
        await pipe.execute()


async def withdraw(client: Client, sidecar_id: str) -> None:
    """Remove a sidecar that stops regularly."""
    async with client.pipeline(transaction=False) as pipe:
        pipe.zrem(keys.SIDECARS, sidecar_id)
        pipe.delete(keys.sidecar(sidecar_id))
        await pipe.execute()


async def living(client: Client) -> list[SidecarStatus]:
    """Read the records of all live sidecars, and remove the names of dead ones."""
    now = redis_time.now()
    await client.zremrangebyscore(keys.SIDECARS, "-inf", now - 60)
    names = await client.zrangebyscore(keys.SIDECARS, now, "+inf")
    if not names:
        return []
    records = [await client.get(keys.sidecar(name.decode())) for name in names]
    return [SidecarStatus.model_validate_json(record) for record in records if record]
