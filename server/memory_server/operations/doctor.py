"""Checks a deployment from outside and says how to mend what is wrong; starts and changes nothing."""

from __future__ import annotations

import time
from collections.abc import Callable

from memory_core.crypto.keyring import Keyring
from memory_core.errors import MemoryServiceError
from memory_core.settings.settings import Settings
from memory_core.store.connection import connect
from memory_server.local.running import Running, find_running, keyring_of
from memory_server.operations.health import machine
from memory_server.operations.health.index_validation import Tell, check_deep
from memory_server.operations.health.namespaces import Looking, check_namespaces
from memory_server.operations.health.report import Report
from memory_server.operations.health.sidecars import check_sidecars
from memory_server.operations.health.store import check_redis


def say_nothing(*_: object) -> None:
    """Show no progress."""


async def examine(
    settings: Settings, *, deep: bool = False, tell: Tell = say_nothing, clock: Callable[[], float] = time.time
) -> Report:
    """Check the Redis that the settings name, or the embedded one, with its indexes and sidecars, and this machine.

    With `deep` every record is looked at too, and `tell` told how far that has come.
    """
    report = Report()
    running = await _find(settings, report)
    machine.check_files(report, settings, running.paths if running else None)
    await machine.check_port(report, settings)
    if running is None:
        machine.check_weights(report, settings, 0)
        return report
    keyring = _keys(settings, running, report)
    client = connect(running.url)
    try:
        if await check_redis(client, report, clock):
            await _check_contents(Looking(client, settings, keyring, report), deep, tell)
    except MemoryServiceError as error:
        report.fault("redis.answer", error.message, error.hint or "start Redis")
    finally:
        await client.aclose()
    return report


async def _find(settings: Settings, report: Report) -> Running | None:
    try:
        running = await find_running(settings)
    except MemoryServiceError as error:
        machine.check_binaries(report)
        report.fault("embedded.supervisor", error.message, error.hint)
        return None
    if running.paths and running.state:
        machine.check_supervisor(report, running.state)
        machine.check_disk(report, running.paths)
    return running


def _keys(settings: Settings, running: Running, report: Report) -> Keyring:
    """Read the keys; one that cannot be read is a finding, and the rest is looked at without it."""
    try:
        return keyring_of(settings, running.paths)
    except MemoryServiceError as error:
        report.fault("keys.unreadable", error.message, error.hint or "see master_key_file in docs/settings.md")
        return Keyring()


async def _check_contents(looking: Looking, deep: bool, tell: Tell) -> None:
    ready = await check_sidecars(looking.client, looking.settings, looking.keyring, looking.report)
    machine.check_weights(looking.report, looking.settings, len(ready))
    machine.check_gpu(looking.report, looking.settings, looking.report.sidecars)
    await check_namespaces(looking)
    if deep:
        await check_deep(looking, tell)
