"""Looks at Redis itself: what it is, whether it keeps what it is given, its clock, and whom it refused what."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from redis.exceptions import ResponseError

from memory_core.errors import StoreRefused
from memory_core.package_data import resource
from memory_core.store import functions
from memory_core.store.connection import Client, store_errors, unsafe
from memory_server.operations.health.report import Report

CLOCKS_DIFFER_SECONDS = 1.0
"""Sidecars and agents live by deadlines of a few seconds, which each process reads by its own clock."""
_FULL = 0.9
_ASKED_IN_VAIN = frozenset({"config|get", "acl|log"})
"""What the product itself asks for and does without; see docs/decisions/0011."""
_SHOWN = 3


async def check_redis(client: Client, report: Report, clock: Callable[[], float] = time.time) -> bool:
    """Look at all of it; whether it can be used at all.

    Raises:
        StoreUnavailable: it does not answer.
    """
    async with store_errors():
        info = await client.info()
        modules = await client.execute_command("MODULE", "LIST")
    report.redis |= {"version": str(info["redis_version"]), "used_memory": int(info["used_memory"])}
    usable = _check_safety(report, info, modules, client)
    _check_persistence(report, info)
    _check_memory(report, info)
    await _check_clock(client, report, clock)
    await _check_refusals(client, report, info)
    if usable:
        await _check_timeouts(client, report)
        await _check_functions(client, report)
    return usable


def _check_safety(report: Report, info: dict[str, Any], modules: Any, client: Client) -> bool:
    """Look for what a server would refuse to start on."""
    problems = unsafe(info, modules, client.connection_pool.connection_kwargs.get("db", 0))
    good = {
        "version": f"Redis {info['redis_version']}",
        "modules": "the Query Engine is loaded",
        "policy": "nothing is evicted",
        "database": "database 0",
    }
    for name, seen in good.items():
        if problem := problems.get(name):
            report.fault(f"redis.{name}", problem.message, problem.hint)
        else:
            report.well(f"redis.{name}", seen)
    return not problems


def _check_persistence(report: Report, info: dict[str, Any]) -> None:
    if not int(info.get("aof_enabled", 0)):
        report.fault(
            "redis.persistence",
            "the append-only file is off: memories are lost when Redis ends",
            "CONFIG SET appendonly yes, and write it into redis.conf",
        )
    elif info.get("aof_last_write_status", "ok") != "ok" or info.get("aof_last_bgrewrite_status", "ok") != "ok":
        remedy = "see Redis's log; make room on its disk, then BGREWRITEAOF"
        report.fault("redis.persistence", "the append-only file could not be written", remedy)
    else:
        report.well("redis.persistence", "the append-only file is on and written")


def _check_memory(report: Report, info: dict[str, Any]) -> None:
    used, most = int(info["used_memory"]), int(info.get("maxmemory", 0))
    seen = f"{used >> 20} MiB used" + (f" of {most >> 20} MiB" if most else ", no limit set")
    if most and used > _FULL * most:
        report.fault("redis.memory", seen, "raise maxmemory, or clear memories: at the limit every write is refused")
    else:
        report.well("redis.memory", seen)


async def _check_clock(client: Client, report: Report, clock: Callable[[], float]) -> None:
    async with store_errors():
        before = clock()
        seconds, microseconds = await client.time()
        apart = (before + clock()) / 2 - (int(seconds) + int(microseconds) / 1e6)
    if abs(apart) > CLOCKS_DIFFER_SECONDS:
        seen = f"this machine's clock is {abs(apart):.1f} s {'ahead of' if apart > 0 else 'behind'} Redis's"
        report.fault("clock", seen, "set both by NTP (timedatectl set-ntp true); leases and heartbeats go by them")
    else:
        report.well("clock", f"{abs(apart) * 1000:.0f} ms apart from Redis's")


async def _check_refusals(client: Client, report: Report, info: dict[str, Any]) -> None:
    """Look whether Redis refused its users anything: by its log where that may be read, else by its counters."""
    counted = {kind: int(info.get(f"acl_access_denied_{kind}", 0)) for kind in ("auth", "cmd", "key", "channel")}
    if not any(counted.values()):
        report.well("redis.acl", "no user was refused anything")
        return
    denials = None if _is_shipped(client) else await _denials(client)
    if denials is None:
        denials = [f"{counted['key'] + counted['channel']} keys or channels"] * bool(
            counted["key"] + counted["channel"]
        )
    if denials:
        more = f" and {len(denials) - _SHOWN} more" if len(denials) > _SHOWN else ""
        report.fault(
            "redis.acl",
            f"Redis refused {', '.join(denials[:_SHOWN])}{more}",
            "compare the user's rules with redis/users.acl of this release, ACL LOAD, then ACL LOG RESET",
        )
    else:
        report.well("redis.acl", "nothing was refused but what is asked for in vain")


def _is_shipped(client: Client) -> bool:
    """Whether the user is one of redis/users.acl: those may not read the log, and asking would leave an entry in it."""
    name = client.connection_pool.connection_kwargs.get("username")
    return bool(name) and f"user {name} " in resource("redis/users.acl").read_text()


async def _denials(client: Client) -> list[str] | None:
    """Tell whom Redis refused what; None where the log may not be read."""
    try:
        async with store_errors():
            entries = await client.acl_log()
    except (ResponseError, StoreRefused):
        return None
    found = [{_text(name): _text(value) for name, value in entry.items()} for entry in entries]
    told = [
        f"{one['username']} the {one['reason']} {one['object']}" for one in found if one["object"] not in _ASKED_IN_VAIN
    ]
    return list(dict.fromkeys(told))


async def _check_timeouts(client: Client, report: Report) -> None:
    try:
        async with store_errors():
            answer = await client.execute_command("FT.CONFIG", "GET", "ON_TIMEOUT")
    except (ResponseError, StoreRefused):
        report.well("redis.search", "what a search out of time gives may not be asked")
        return
    if "fail" in repr(answer).lower():
        report.well("redis.search", "a search out of time fails")
    else:
        remedy = "load the Query Engine with ON_TIMEOUT FAIL, or FT.CONFIG SET ON_TIMEOUT FAIL"
        report.warn("redis.search", "a search out of time answers in part", remedy)


async def _check_functions(client: Client, report: Report) -> None:
    try:
        async with store_errors():
            present = await client.execute_command("FUNCTION", "LIST", "LIBRARYNAME", functions.LIBRARY, "WITHCODE")
    except (ResponseError, StoreRefused):
        return
    if not present:
        report.well("redis.functions", "not loaded yet: a server does that")
    elif present[0].get(b"library_code", b"").decode() != functions.library_code():
        remedy = "restart the servers of the other release: the last that starts brings its own"
        report.warn("redis.functions", f"the library {functions.LIBRARY} is of another release than this", remedy)
    else:
        report.well("redis.functions", f"the library {functions.LIBRARY} is of this release")


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
