"""Looks at each namespace: its model, its index, the embed jobs that wait or failed, its keys and its audit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redis.exceptions import ResponseError

from memory_core.crypto.keyring import Keyring
from memory_core.errors import KeyMissing, ModelMismatch
from memory_core.records.keys import NAMESPACES, Keys
from memory_core.records.model import Model, Models, read_models
from memory_core.settings.settings import Settings
from memory_core.store import index
from memory_core.store.connection import Client, store_errors
from memory_server.engine.index_definition import drift
from memory_server.operations.health.report import Report
from memory_server.security.audit import reader

STUCK_SECONDS = 60.0
"""A job that is older than this waits for something that does not come."""
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Looking:
    """What the checks of a namespace share."""

    client: Client
    settings: Settings
    keyring: Keyring
    report: Report


async def check_namespaces(looking: Looking) -> None:
    """Look at all of them.

    Raises:
        StoreUnavailable: Redis does not answer.
    """
    async with store_errors():
        names = sorted(name.decode() for name in await looking.client.smembers(NAMESPACES))
    looking.report.namespaces = names
    for name in names:
        keys = Keys(name)
        if models := await _check_model(looking, keys):
            await _check_index(looking, keys, models.current)
            await _check_jobs(looking, keys, models.current)
        await _check_keys(looking, keys)
        await _check_audit(looking, keys)


async def _check_model(looking: Looking, keys: Keys) -> Models | None:
    """Give the models of a namespace, unless the settings name none of them."""
    wanted, report = looking.settings.vector_store, looking.report
    try:
        async with store_errors():
            await index.check_model(looking.client, keys, wanted.embedding_model, wanted.vector_dimension)
            models = await read_models(looking.client, keys) or Models(Model.configured(wanted))
    except ModelMismatch as error:
        report.fault("namespace.model", error.message, error.hint, where=keys.namespace)
        return None
    if models.other:
        remedy = f"redis-memory reindex --namespace {keys.namespace} --status says how to go on, back or end it"
        seen = (
            f"the model is being changed ({models.phase}): {models.current.name} answers, {models.other.name} is kept"
        )
        report.warn("namespace.change", seen, remedy, where=keys.namespace)
    return models


async def _check_index(looking: Looking, keys: Keys, model: Model) -> None:
    report, where = looking.report, keys.namespace
    info = await index_info(looking.client, keys)
    if info is None:
        remedy = f"start a server, or search in {where} once: the index is then made anew"
        report.fault("index.missing", "there is no index: nothing is found", remedy, where=where)
        return
    if int(info.get(b"indexing", 0)):
        progress = float(info.get(b"percent_indexed", 0))
        report.warn("index.building", f"{progress:.0%} indexed", "wait; searches say `partial` meanwhile", where=where)
    else:
        report.well("index.there", f"{int(info[b'num_docs'])} texts indexed", where=where)
    if told := drift(info, keys, model.within(looking.settings.vector_store)):
        seen = "; ".join(told[:_SHOWN]) + (f"; and {len(told) - _SHOWN} more" if len(told) > _SHOWN else "")
        remedy = f"redis-memory reindex --namespace {where}, or set vector_store.hnsw to what the index has"
        report.warn("index.definition", seen, remedy, where=where)
    if failures := int(info.get(b"hash_indexing_failures", 0)):
        remedy = "redis-memory doctor --deep names the records; clear or store them anew"
        report.fault("index.failures", f"{failures} records were refused: {_last_error(info)}", remedy, where=where)


async def index_info(client: Client, keys: Keys) -> dict[bytes, Any] | None:
    """Give FT.INFO's answer on the index behind the alias; None where there is none."""
    try:
        async with store_errors():
            return await client.execute_command("FT.INFO", keys.index_alias)
    except ResponseError as error:
        if index.is_missing_index(error):
            return None
        raise


def _last_error(info: dict[bytes, Any]) -> str:
    errors = info.get(b"Index Errors") or {}
    told, key = (errors.get(name, b"") for name in (b"last indexing error", b"last indexing error key"))
    return f"{ascii(told.decode(errors='replace'))[1:-1][:120]} in {key.decode(errors='replace')}"


async def _check_jobs(looking: Looking, keys: Keys, model: Model) -> None:
    """Look at the texts that wait for their vectors, by Redis's clock, and at those given up."""
    client, report, where = looking.client, looking.report, keys.namespace
    async with store_errors():
        (seconds, _), number = await client.time(), int(await client.xlen(keys.jobs(model.name)))
        oldest: Sequence[Any] = await client.xrange(keys.jobs(model.name), count=1)
        dead = int(await client.xlen(keys.dead_jobs))
    waits = int(seconds) - int(oldest[0][0].partition(b"-")[0]) / 1000 if oldest else 0.0
    if waits > STUCK_SECONDS:
        remedy = "start another sidecar (redis-memory-embedder), and see the log of those that run"
        report.fault(
            "jobs.stuck", f"{number} texts wait for vectors, the oldest for {waits:.0f} s", remedy, where=where
        )
    else:
        report.well("jobs.waiting", f"{number} texts wait for vectors", where=where)
    if dead:
        remedy = (
            f"the sidecar's log says why; mend that, then DEL '{keys.dead_jobs}': servers ask for the vectors again"
        )
        report.warn("jobs.dead", f"{dead} texts could not be embedded", remedy, where=where)


async def _check_keys(looking: Looking, keys: Keys) -> None:
    """Look whether a server without a key meets records that were signed."""
    async with store_errors():
        signed = await looking.client.hexists(keys.counters, "signed")
    if signed and looking.keyring.signer is None:
        seen = "its records are signed, and no key is known here: servers refuse to store"
        remedy = "set MEMORY_MASTER_KEY, _FILE or _COMMAND to what the server had that stored them"
        looking.report.fault("keys.missing", seen, remedy, where=keys.namespace)


async def _check_audit(looking: Looking, keys: Keys) -> None:
    """Look how far the audit is sealed, and whether the last seal is genuine; `audit verify` looks at all of it."""
    counted = await reader.counters(looking.client, keys)
    _, last = await reader.last_seal(looking.client, keys)
    seen, where = f"{counted.given} entries, sealed up to {counted.sealed}", keys.namespace
    if looking.keyring.signer is None:
        looking.report.well("audit.seals", f"{seen}; no key is known here, so none is checked", where=where)
        return
    try:
        is_good = last.is_genuine(looking.keyring, where) and not last.broken if last else not counted.sealed
    except KeyMissing:
        is_good = False
    remedy = None if is_good else f"redis-memory audit verify --namespace {where} says what was changed"
    looking.report.judge("audit.seals", seen, remedy, where=where)
