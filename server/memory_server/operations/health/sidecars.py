"""Checks the embedding sidecars: alive, on the right model, with the transport key."""

from __future__ import annotations

from memory_core.crypto.sealing import Transports
from memory_core.errors import StoreRefused
from memory_core.records.keys import SIDECARS
from memory_core.store import sidecar
from memory_core.store.connection import store_errors
from memory_core.store.sidecar import GIVE_KEY, SidecarStatus, lacks_key
from memory_server.operations.health.report import Inspection


async def check_sidecars(inspection: Inspection) -> list[SidecarStatus]:
    """Check all living sidecars; return those ready for the configured model. Raises StoreUnavailable."""
    report, wanted = inspection.report, inspection.settings.vector_store
    try:
        async with store_errors():
            living = report.sidecars = await sidecar.living(inspection.client)
    except StoreRefused as error:
        report.error("sidecars.alive", error.message, f"repair {SIDECARS} as redis.key says", where=SIDECARS)
        return []
    model, dimension = wanted.embedding_model, wanted.vector_dimension
    fitting = [one for one in living if (one.model, one.dimension) == (model, dimension)]
    ready = [one for one in fitting if one.state == "ready"]
    if not living:
        remedy = "start redis-memory-embedder"
        if any(finding.id == "redis.memory" for finding in report.faults):
            remedy = "make room as redis.memory says: a full Redis refuses the heartbeats of sidecars; then " + remedy
        report.error("sidecars.alive", "none is alive: search uses keywords only", remedy)
    elif not fitting:
        others = ", ".join(sorted({f"{one.model} ({one.dimension})" for one in living}))
        remedy = f"start redis-memory-embedder --model {model}, or set vector_store.embedding_model"
        report.error("sidecars.model", f"the living sidecars run {others}, none runs {model} ({dimension})", remedy)
    elif not ready:
        states = ", ".join(sorted({one.state for one in fitting}))
        remedy = "wait while it loads its model; read its log if that takes minutes"
        report.warning("sidecars.ready", f"none is ready: {states}", remedy)
    else:
        report.ok("sidecars.alive", f"{len(ready)} ready for {model} of {len(living)} alive")
    transports = Transports(inspection.keyring.transports)
    if transports.current and ready:
        keyless = [one for one in ready if lacks_key(transports, one)]
        for one in keyless:
            report.error("sidecars.key", "it lacks the transport key and cannot decrypt texts", GIVE_KEY, where=one.id)
        if not keyless:
            report.ok("sidecars.key", f"all {len(ready)} have the transport key")
    return ready
