"""Checks each namespace: model, index, embed jobs, keys and audit log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from redis.exceptions import ResponseError

from memory_core.crypto.integrity import Integrity
from memory_core.errors import KeyMissing, ModelMismatch, SignedElsewhere, StoreRefused, plain_line
from memory_core.records.authority_codes import IntegrityFailure
from memory_core.records.damage import execute
from memory_core.records.keys import NAMESPACES, Keys
from memory_core.records.model import Model, Models, read_models
from memory_core.records.names import only_names
from memory_core.redis_client import Client
from memory_core.slices import slices
from memory_core.store import index
from memory_core.store.connection import store_errors
from memory_core.store.signer import check_signer
from memory_server.contract.untrusted_text import counted
from memory_server.engine.index_definition import drift
from memory_server.index import queries
from memory_server.index import query_builder as build
from memory_server.operations.authority_records import AuthorityScan
from memory_server.operations.health.report import Inspection
from memory_server.security.audit import reader

STUCK_SECONDS = 60.0
"""A job that waits longer than this is stuck."""
_MOST_SHOWN = 3
_AT_ONCE = 1000
_UNREADABLE = "restore the damaged key from a backup, or DEL it; docs/inside.md lists the keys"


async def check_namespaces(inspection: Inspection) -> None:
    """Check all namespaces; raises StoreUnavailable."""
    try:
        async with store_errors():
            names = only_names(await inspection.client.smembers(NAMESPACES))
    except StoreRefused as error:
        remedy = f"repair {NAMESPACES} as redis.key says"
        inspection.report.error("namespace.unreadable", error.message, remedy, where=NAMESPACES)
        return
    inspection.report.namespaces = names
    for name in names:
        for check in (_check_vectors, _check_keys, _check_authority, _check_data_keys, _check_audit, _check_damage):
            try:
                await check(inspection, Keys(name))
            except (StoreRefused, ResponseError) as error:
                seen = f"{check.__name__[1:]} failed: {error.__cause__ or error}"
                inspection.report.error("namespace.unreadable", seen, _UNREADABLE, where=name)


async def _check_vectors(inspection: Inspection, keys: Keys) -> None:
    if models := await _check_model(inspection, keys):
        await _check_index(inspection, keys, models.current)
        await _check_jobs(inspection, keys, models.current)


async def _check_model(inspection: Inspection, keys: Keys) -> Models | None:
    """Return the models of a namespace; None if they do not match the settings."""
    wanted, report = inspection.settings.vector_store, inspection.report
    try:
        async with store_errors():
            await index.check_model(inspection.client, keys, wanted.embedding_model, wanted.vector_dimension)
            models = await read_models(inspection.client, keys) or Models(wanted.model)
    except ModelMismatch as error:
        report.error("namespace.model", error.message, error.hint, where=keys.namespace)
        return None
    if models.other:
        remedy = f"redis-memory reindex --namespace {keys.namespace} --status shows how to continue, undo or finish it"
        seen = f"change of model, phase {models.phase}: {models.current.name} is current, {models.other.name} is kept"
        report.warning("namespace.change", seen, remedy, where=keys.namespace)
    return models


async def _check_index(inspection: Inspection, keys: Keys, model: Model) -> None:
    report, where = inspection.report, keys.namespace
    info = await index_info(inspection.client, keys)
    if info is None:
        remedy = f"start a server, or search in {where} once: that creates the index again"
        report.error("index.missing", "the index is missing: search finds nothing", remedy, where=where)
        return
    if int(info.get(b"indexing", 0)):
        seen = f"{float(info.get(b'percent_indexed', 0)):.0%} indexed"
        report.warning("index.building", seen, "wait; searches are `partial` meanwhile", where=where)
    else:
        report.ok("index.there", f"{counted(int(info[b'num_docs']), 'text')} indexed", where=where)
    if differences := drift(info, keys, inspection.settings.vector_store.with_model(model)):
        seen = "; ".join(differences[:_MOST_SHOWN])
        seen += f"; and {len(differences) - _MOST_SHOWN} more" if len(differences) > _MOST_SHOWN else ""
        remedy = f"redis-memory reindex --namespace {where}, or set vector_store.hnsw to the values of the index"
        report.warning("index.definition", seen, remedy, where=where)
    if failures := int(info.get(b"hash_indexing_failures", 0)):
        remedy = "redis-memory doctor --deep names the records; delete them or store them again"
        report.error(
            "index.failures",
            f"{counted(failures, 'record was', 'records were')} rejected: {_last_error(info)}",
            remedy,
            where=where,
        )


async def index_info(client: Client, keys: Keys) -> dict[bytes, Any] | None:
    """Return FT.INFO of the index behind the alias; None if it is missing."""
    try:
        async with store_errors():
            return await client.execute_command("FT.INFO", keys.index_alias)
    except ResponseError as error:
        if index.is_missing_index(error):
            return None
        raise


def _last_error(info: dict[bytes, Any]) -> str:
    errors = info.get(b"Index Errors") or {}
    message, key = (errors.get(name, b"") for name in (b"last indexing error", b"last indexing error key"))
    return f"{plain_line(message.decode(errors='replace'))[:120]} in {plain_line(key.decode(errors='replace'))}"


async def _check_jobs(inspection: Inspection, keys: Keys, model: Model) -> None:
    client, report, where = inspection.client, inspection.report, keys.namespace
    async with store_errors():
        (seconds, _), number = await client.time(), int(await client.xlen(keys.jobs(model.name)))
        oldest: Sequence[Any] = await client.xrange(keys.jobs(model.name), count=1)
        dead = int(await client.xlen(keys.dead_jobs))
    waited = int(seconds) - int(oldest[0][0].partition(b"-")[0]) / 1000 if oldest else 0.0
    seen = counted(number, "text waits for its vector", "texts wait for vectors")
    if waited > STUCK_SECONDS:
        remedy = "start another sidecar (redis-memory-embedder), and read the logs of the running ones"
        report.error("jobs.stuck", f"{seen}, the oldest for {waited:.0f} s", remedy, where=where)
    else:
        report.ok("jobs.waiting", seen, where=where)
    failed = await _count_failed(inspection, keys, model)
    if dead or failed:
        texts = counted(failed, "text has no vector, because it", "texts have no vector, because they")
        seen = f"{texts} could not be embedded; {counted(dead, 'job')} failed"
        remedy = f"fix the reason in the sidecar's log, then redis-memory reindex --namespace {where}, "
        remedy += f"which tries them again, then DEL '{keys.dead_jobs}'"
        report.warning("jobs.dead", seen, remedy, where=where)


async def _count_failed(inspection: Inspection, keys: Keys, model: Model) -> int:
    query, timeout = build.failed(build.Query(), model), inspection.settings.search_timeout_ms
    try:
        async with store_errors():
            return await queries.count(inspection.client, keys, query, timeout)
    except ResponseError as error:
        if index.is_missing_index(error):
            return 0
        raise


async def _check_keys(inspection: Inspection, keys: Keys) -> None:
    try:
        async with store_errors():
            await check_signer(inspection.client, inspection.keyring, keys.namespace)
    except SignedElsewhere as error:
        inspection.report.error("keys.missing", f"{error.message}: servers refuse", error.hint, where=keys.namespace)


async def _check_authority(inspection: Inspection, keys: Keys) -> None:
    """Check the codes of owner ids, grants, offers, tokens, quarantine marks and tombstones."""
    integrity, where, report = Integrity(inspection.keyring), keys.namespace, inspection.report
    if not integrity.signs:
        return
    found = {one.name: one.failure async for one in AuthorityScan(inspection.client, integrity, where).records()}
    failed = {name: failure for name, failure in found.items() if failure}
    if not failed:
        seen = counted(len(found), "authorisation record has a valid code", "authorisation records have a valid code")
        report.ok("authority.records", seen, where=where)
        return
    if set(failed.values()) == {IntegrityFailure.UNSIGNED}:
        remedy = f"if an earlier release wrote them, run redis-memory integrity adopt --namespace {where} once"
    else:
        remedy = f"redis-memory integrity verify --namespace {where} names all; somebody wrote them without the key: "
        remedy += "change the passwords of Redis, and restore or delete them"
    shown = "; ".join(f"{name} is {failure}" for name, failure in sorted(failed.items())[:_MOST_SHOWN])
    bad = counted(
        len(failed), "authorisation record fails its check and has", "authorisation records fail their check and have"
    )
    seen = f"{bad} no effect, of {len(found)}: {shown}"
    report.error("authority.records", seen, remedy, where=where)


async def _check_data_keys(inspection: Inspection, keys: Keys) -> None:
    """Name each data key of another type: without it, the sensitive memories of its owner cannot be read."""
    async with store_errors():
        owners: set[bytes] = await inspection.client.smembers(keys.keyed)
    for part in slices([keys.data_key(owner.decode(errors="replace")) for owner in sorted(owners)], _AT_ONCE):
        pipe = inspection.client.pipeline(transaction=False)
        for key in part:
            pipe.hlen(key)
        async with store_errors():
            lengths = await execute(pipe)
        for key, length in zip(part, lengths, strict=True):
            if isinstance(length, Exception):
                seen = f"{key} is of another type: the sensitive memories of this owner cannot be read"
                remedy = f"restore '{key}' from a backup; after DEL '{key}' those memories stay unreadable"
                inspection.report.error("namespace.data_key", seen, remedy, where=keys.namespace)


async def _check_audit(inspection: Inspection, keys: Keys) -> None:
    """Check how far the audit log is sealed, and the last seal. `audit verify` checks all of it."""
    counters = await reader.counters(inspection.client, keys)
    _, last = await reader.last_seal(inspection.client, keys)
    seen, where, report = (
        f"{counted(counters.given, 'entry')}, sealed up to {counters.sealed}",
        keys.namespace,
        inspection.report,
    )
    if inspection.keyring.signer is None:
        report.ok("audit.seals", f"{seen}; no key is configured, so seals are not checked", where=where)
        return
    try:
        is_good = last.is_genuine(inspection.keyring, where) and not last.broken if last else not counters.sealed
    except KeyMissing:
        is_good = False
    remedy = f"redis-memory audit verify --namespace {where} shows what was changed"
    report.check(is_good, "audit.seals", seen, remedy, where=where)


async def _check_damage(inspection: Inspection, keys: Keys) -> None:
    """Check whether Functions and servers removed damaged entries lately."""
    async with store_errors():
        number = int(await inspection.client.xlen(keys.damaged))
        newest: Sequence[Any] = await inspection.client.xrevrange(keys.damaged, count=_MOST_SHOWN)
    if not number:
        inspection.report.ok("namespace.damage", "no damaged entries were removed", where=keys.namespace)
        return
    text = [{name.decode(): value.decode(errors="replace") for name, value in fields.items()} for _, fields in newest]
    shown = "; ".join(f"{one.get('entry') or 'all'} of {one.get('key')} ({one.get('why')})" for one in text)
    remedy = f"find what else writes to this Redis, then DEL '{keys.damaged}'"
    seen = f"{counted(number, 'damaged entry was', 'damaged entries were')} removed, the newest: {shown}"
    inspection.report.warning("namespace.damage", seen, remedy, where=keys.namespace)
