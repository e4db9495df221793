"""Checks that no key outside the namespaces is of another type than the servers write."""

from __future__ import annotations

from memory_core.store.connection import store_errors
from memory_server.engine.shared_keys import damaged_shared_keys
from memory_server.operations.health.report import Inspection


async def check_shared_keys(inspection: Inspection) -> None:
    """Name each shared key of another type. Raises StoreUnavailable."""
    models = [inspection.settings.vector_store.embedding_model]
    async with store_errors():
        damaged = await damaged_shared_keys(inspection.client, models)
    for key in damaged:
        remedy = f"start a server, which removes it within seconds, or DEL '{key}'; find what else writes to this Redis"
        inspection.report.error("redis.key", f"{key} is of another type than the servers write", remedy, where=key)
    if not damaged:
        inspection.report.ok("redis.key", "the keys outside the namespaces can be read")
