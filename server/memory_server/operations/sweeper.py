"""Finishes what a dead process left undone. Notifications are only hints, so the sweeper checks Redis itself.

Only the server process that holds the lease sweeps.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from itertools import count

from memory_core.cancellation import cancel
from memory_core.errors import KeyMissing, MemoryServiceError, StoreFull, Tampered
from memory_core.records import redis_time
from memory_core.records.ids import new_id
from memory_core.records.keys import AUDITED, SWEEPER, Keys
from memory_core.records.names import only_names
from memory_core.redis_client import Client
from memory_server.engine.damage import readable
from memory_server.engine.shared_keys import repair_shared_keys
from memory_server.events.retention import trim_events
from memory_server.memories.chunks import parse_chore, settle
from memory_server.operations.embed_jobs import recover
from memory_server.operations.team_sweeper import keeps_on, sweep_due_teams, sweep_team, tidy
from memory_server.security.audit.chain import is_unsealed
from memory_server.security.audit.retention import trim
from memory_server.service import Service
from memory_server.sharing.grants import remove_expired

log = logging.getLogger(__name__)
ROUND_SECONDS = 1.0
"""How often deadlines of tasks and agents are checked; every ROUNDS_A_SWEEP-th time everything is."""
ROUNDS_A_SWEEP = 5
LEASE_SECONDS = 6
TRIM_SECONDS = 3600.0
"""How often old audit entries are deleted."""
PATIENCE_SECONDS = 10.0
"""Another process may still be working on anything younger than this."""
_AT_ONCE = 100


@asynccontextmanager
async def sweeping(service: Service) -> AsyncGenerator[None]:
    """Sweep in the background until left."""
    task = asyncio.create_task(_sweep_forever(service), name="sweeper")
    try:
        yield
    finally:
        await cancel([task])


async def _sweep_forever(service: Service) -> None:
    name = new_id()
    for number in count():
        await asyncio.sleep(ROUND_SECONDS)
        try:
            held = await service.backend.hold_lease(SWEEPER, name, LEASE_SECONDS)
            if held:
                if number % ROUNDS_A_SWEEP:
                    await sweep_due_teams(service)
                else:
                    await sweep(service)
                    await sweep_audits(service)
            service.counters.sweeps["done" if held else "elsewhere"] += 1
        except MemoryServiceError as error:
            service.counters.sweeps["failed"] += 1
            log.warning("sweep: %s", error.message)
        except Exception:
            service.counters.sweeps["failed"] += 1
            log.exception("a sweep failed; the next starts in %s s", ROUND_SECONDS)


async def sweep(service: Service, *, patience: float = PATIENCE_SECONDS) -> None:
    """Sweep all namespaces: missing indexes, expired grants, teams, unwritten chunks, memories without a vector.

    What adds to Redis comes last: a full one refuses it.
    """
    with keeps_on(service, "check of the shared keys"):
        await repair_shared_keys(service.backend)
    for namespace in await service.namespaces.names():
        with keeps_on(service, f"sweep of {namespace}"):
            await tidy(service, namespace)
            await service.namespaces.get(namespace)
            await remove_expired(service.backend, namespace, _AT_ONCE)
            await trim_events(service.backend, namespace)
            await sweep_team(service, namespace)
            await _settle_chores(service, namespace, patience)
            await recover(service, namespace, patience)


async def sweep_audits(service: Service) -> None:
    """Seal the entries that a killed server left unsealed, and delete old entries."""
    audited: set[bytes] = await service.backend.read(lambda client: client.smembers(AUDITED))
    for namespace in sorted({*only_names(audited), *await service.namespaces.names()}):
        with keeps_on(service, f"audit of {namespace}"):
            if await is_unsealed(service.backend, namespace):
                service.auditor.noticed(namespace)
            if service.auditor.is_due_for_trim(namespace, TRIM_SECONDS):
                await trim(service.backend, namespace, service.settings.audit)


async def _settle_chores(service: Service, namespace: str, patience: float) -> None:
    keys, now = Keys(namespace), redis_time.now()

    async def fetch(client: Client) -> list[bytes]:
        pipe = client.pipeline(transaction=False)
        pipe.zrangebyscore(keys.chores, "-inf", now - patience, start=0, num=_AT_ONCE)
        # Redis's clock may have been set back since these were noted:
        pipe.zrangebyscore(keys.chores, now + patience, "+inf", start=0, num=_AT_ONCE)
        return [chore for chores in await pipe.execute() for chore in chores]

    for memory_id, chore in await readable(
        service.backend, keys.chores, await service.backend.read(fetch), parse_chore
    ):
        try:
            await settle(service, namespace, chore)
        except (Tampered, KeyMissing, StoreFull) as error:
            log.warning("the chunks of %s in %s are left unchanged: %s", memory_id, namespace, error.message)
