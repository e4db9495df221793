"""Looks at the embedding sidecars: whether any lives, for this model, and can open what servers seal."""

from __future__ import annotations

from memory_core.crypto.keyring import Keyring
from memory_core.crypto.sealing import Transports
from memory_core.records import sidecar
from memory_core.records.sidecar import GIVE_KEY, SidecarStatus, lacks_key
from memory_core.settings.settings import Settings
from memory_core.store.connection import Client, store_errors
from memory_server.operations.health.report import Report


async def check_sidecars(client: Client, settings: Settings, keyring: Keyring, report: Report) -> list[SidecarStatus]:
    """Look at all that live; give those that serve this deployment's model.

    Raises:
        StoreUnavailable: Redis does not answer.
    """
    async with store_errors():
        living = report.sidecars = await sidecar.living(client)
    model, dimension = settings.vector_store.embedding_model, settings.vector_store.vector_dimension
    fitting = [one for one in living if (one.model, one.dimension) == (model, dimension)]
    ready = [one for one in fitting if one.state == "ready"]
    if not living:
        report.fault("sidecars.alive", "none is alive: searches go by words only", "start redis-memory-embedder")
    elif not fitting:
        others = ", ".join(sorted({f"{one.model} ({one.dimension})" for one in living}))
        remedy = f"start redis-memory-embedder --model {model}, or set vector_store.embedding_model"
        report.fault("sidecars.model", f"those alive have {others}, and none {model} ({dimension})", remedy)
    elif not ready:
        states = ", ".join(sorted({one.state for one in fitting}))
        remedy = "wait while it loads its model; see its log if that takes minutes"
        report.warn("sidecars.ready", f"none is ready: {states}", remedy)
    else:
        report.well("sidecars.alive", f"{len(ready)} ready for {model} of {len(living)} alive")
    _check_keys(report, Transports(keyring.transports), ready)
    return ready


def _check_keys(report: Report, transports: Transports, ready: list[SidecarStatus]) -> None:
    if not transports.current or not ready:
        return
    keyless = [one for one in ready if lacks_key(transports, one)]
    for one in keyless:
        report.fault("sidecars.key", "it lacks the transport key, and opens nothing sealed", GIVE_KEY, where=one.id)
    if not keyless:
        report.well("sidecars.key", f"all {len(ready)} hold the transport key")
