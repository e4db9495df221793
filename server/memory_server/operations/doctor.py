"""Checks a deployment and reports how to fix its problems. Starts and changes nothing."""

from __future__ import annotations

import time
from collections.abc import Callable

from memory_core.crypto.keyring import Keyring
from memory_core.errors import MemoryServiceError
from memory_core.settings.settings import Settings
from memory_core.store.connection import connect
from memory_server.local.running import RunningRedis, find_running, keyring_of
from memory_server.operations.health import machine
from memory_server.operations.health.index_validation import Progress, check_deep
from memory_server.operations.health.namespaces import check_namespaces
from memory_server.operations.health.report import DoctorReport, Inspection
from memory_server.operations.health.shared_keys import check_shared_keys
from memory_server.operations.health.sidecars import check_sidecars
from memory_server.operations.health.store import check_redis


def no_progress(*_: object) -> None:
    """Ignore progress."""


async def examine(
    settings: Settings, *, deep: bool = False, progress: Progress = no_progress, clock: Callable[[], float] = time.time
) -> DoctorReport:
    """Check Redis, its indexes and sidecars, and this machine; with `deep`, also every record."""
    report = DoctorReport()
    running = await _find_redis(settings, report)
    machine.check_files(report, settings, running.paths if running else None)
    await machine.check_port(report, settings)
    if running is None:
        machine.check_weights(report, settings, 0)
        return report
    keyring = _keys(settings, running, report)
    client = connect(running.url)
    try:
        if await check_redis(client, report, clock):
            inspection = Inspection(client, settings, keyring, report)
            await check_shared_keys(inspection)
            ready = await check_sidecars(inspection)
            machine.check_weights(report, settings, len(ready))
            machine.check_gpu(report, settings, report.sidecars)
            await check_namespaces(inspection)
            if deep:
                await check_deep(inspection, progress)
    except MemoryServiceError as error:
        report.error("redis.answer", error.message, error.hint or "start Redis")
    finally:
        await client.aclose()
    return report


async def _find_redis(settings: Settings, report: DoctorReport) -> RunningRedis | None:
    try:
        running = await find_running(settings)
    except MemoryServiceError as error:
        machine.check_binaries(report)
        report.error("embedded.supervisor", error.message, error.hint)
        return None
    if running.paths and running.state:
        machine.check_supervisor(report, running.state)
        machine.check_disk(report, running.paths)
    return running


def _keys(settings: Settings, running: RunningRedis, report: DoctorReport) -> Keyring:
    """Read the keys. An unreadable key is a finding; the other checks run without it."""
    try:
        return keyring_of(settings, running.paths)
    except MemoryServiceError as error:
        report.error("keys.unreadable", error.message, error.hint or "see master_key_file in docs/settings.md")
        return Keyring()
